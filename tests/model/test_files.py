"""Atomic writes and fingerprints."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from afn_model.files import (
    append_row,
    appended_rows,
    atomic_path,
    fingerprint,
    fingerprint_of,
    follow_umask,
    model_folder,
    read_json,
    remove_leftovers,
    write_json,
    write_rows,
    write_text,
)
from afn_model.hashing import text_key


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.json"
    write_text(file, "old")

    def stopped():
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "b"):
        pass  # wrote nothing


def test_the_temporary_file_is_hidden_beside_its_target_with_its_suffix(tmp_path):
    with atomic_path(tmp_path / "a.png") as one, atomic_path(tmp_path / "a.png") as two:
        assert one != two
        assert (one.parent, one.suffix, one.name[0]) == (tmp_path, ".png", ".")
        one.write_bytes(b"1")
        two.write_bytes(b"2")
    assert (tmp_path / "a.png").read_bytes() == b"1"


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    code = (
        "import os, sys, tempfile; from afn_model import files\n"
        "with files.atomic_path(sys.argv[1] + '/a.json') as path:\n"
        "    path.write_text('half')\n"
        "    os.mkdir(tempfile.mkdtemp(dir=sys.argv[1], prefix=files.PARTIAL) + '/inner')\n"
        "    os._exit(9)\n"
    )
    kept = [tmp_path / name for name in ("a.json", ".hidden", ".lock", ".step-00000001", "model")]
    for path in kept[:-1]:
        path.touch()
    kept[-1].mkdir()
    for folder in (tmp_path, tmp_path / "model"):
        assert subprocess.run([sys.executable, "-c", code, str(folder)]).returncode == 9
    assert len(list(tmp_path.rglob("*"))) == len(kept) + 6, "two temporary files and two folders with one inside"
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == sorted(kept)


def test_a_link_stays_and_permissions_too(tmp_path):
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "a.json", tmp_path / "b.txt"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    with atomic_path(link) as temporary:
        assert (temporary.parent, temporary.suffix) == (file.parent, ".txt")
        temporary.write_text("new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    dangling = tmp_path / "c.txt"
    dangling.symlink_to(tmp_path / "d.txt")
    write_text(dangling, "new")
    assert (tmp_path / "d.txt").read_text() == "new"


def test_what_is_not_a_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ValueError, match=f"{name}: is there and not a regular file"):
            write_text(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "folder").is_dir()


def test_a_temporary_folder_goes_too(tmp_path):
    def stopped():
        with atomic_path(tmp_path / "a") as temporary:
            temporary.mkdir()
            (temporary / "b").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not list(tmp_path.iterdir())


def test_text_that_is_not_unicode(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json: .*surrogates not allowed"):
        write_json(tmp_path / "a.json", {"a": "q\udcff"})
    assert not list(tmp_path.iterdir())


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    code = f"""
import os, signal
from afn_model.files import atomic_path
with atomic_path({str(file)!r}) as temporary:
    temporary.write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert file.read_text() == "old"


def test_json_rows_and_fingerprints(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"ä": [1]}
    write_rows(tmp_path / "a.jsonl", [{"a": 1}, {"b": 2}])
    assert (tmp_path / "a.jsonl").read_text() == '{"a": 1}\n{"b": 2}\n'
    data = b"x" * ((1 << 20) + 5)
    (tmp_path / "b").write_bytes(data)
    assert fingerprint(tmp_path / "b") == fingerprint_of([data[:7], data[7:]]) == hashlib.sha256(data).hexdigest()
    assert fingerprint_of(["ä", b"b"]) == hashlib.sha256("äb".encode()).hexdigest()
    assert text_key("a") == text_key(b"a") != text_key("b")
    assert 0 <= text_key("a") < 2**64


def test_a_new_file_has_the_permissions_that_the_umask_gives(tmp_path):
    (tmp_path / "new").touch()
    expected = (tmp_path / "new").stat().st_mode
    with atomic_path(tmp_path / "a") as temporary:
        temporary.touch(0o600)
    assert (tmp_path / "a").stat().st_mode == expected
    (tmp_path / "b").touch(0o600)
    follow_umask(tmp_path / "b")
    assert (tmp_path / "b").stat().st_mode == expected
    assert {file.name for file in tmp_path.iterdir()} == {"new", "a", "b"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[" * 100_000 + "]" * 100_000, "cannot be read as JSON: .*recursion"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read as JSON: Exceeds the limit"),
        ("\xff", "cannot be read as JSON"),
        ("[1]", "expected a JSON object"),
        ("null", "expected a JSON object"),
    ],
)
def test_what_is_no_json_object(tmp_path, text, line):
    (tmp_path / "a.json").write_text(text, "latin-1")
    with pytest.raises(ValueError, match=rf"a\.json: {line}") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")  # reading it would wait for ever
    with pytest.raises(ValueError, match=r"pipe\.json: not a regular file"):
        read_json(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")


def test_folders_that_are_no_model_say_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^nvidia/some-model: no such folder; .* hf download nvidia/some-model --loc"):
        model_folder("nvidia/some-model")
    with pytest.raises(ValueError, match=r"^some: no such folder$"):
        model_folder("some")
    run = tmp_path / "run"
    for stage in "abcde":
        (run / stage / "model").mkdir(parents=True)
        write_json(run / stage / "model" / "config.json", {})
    (run / "a" / "adapter").mkdir()
    write_json(run / "a" / "adapter" / "adapter_config.json", {})
    with pytest.raises(ValueError, match=r"run: not a model, but it holds .*run/a/model, .*run/c/model and 2 more$"):
        model_folder(run)
    with pytest.raises(ValueError, match=r"not a model, but it holds .*run/a/model$"):
        model_folder(run / "a")
    with pytest.raises(ValueError, match=r"a LoRA adapter, not a model; the model with it is .*run/a/model$"):
        model_folder(run / "a" / "adapter")
    (run / "a" / "adapter").rename(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"a LoRA adapter, not a model; --adapter .*adapter puts it on it"):
        model_folder(tmp_path / "adapter")
    assert model_folder(run / "a" / "model") == run / "a" / "model"


def test_rows_are_appended_whole_and_torn_ones_are_left_out(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert list(appended_rows(path)) == []
    append_row(path, {"n": 1})
    path.write_bytes(path.read_bytes() + b'\xff\n{"n": 2')
    append_row(path, [3])
    assert list(appended_rows(path)) == [{"n": 1}, [3]]
    path.write_bytes(path.read_bytes()[:-1])
    assert list(appended_rows(path)) == [{"n": 1}]
