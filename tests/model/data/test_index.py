"""The corpus index: constant time and memory, and nothing that changed or broke goes unnoticed."""

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from afn_model.data.index import ENTRY, Corpus, build, folder_of

RECORDS = [
    {"id": "a", "sound": "a.wav", "duration": 1.5, "conversations": [{"from": "human", "value": "<sound>\nÜber?"}]},
    {"id": "b", "conversations": []},
    {"id": "c", "sound": ["a.wav", "b.wav"], "duration": [2, 0.25]},
]
MEASURES = {False: [0.0, 9.0, 0.0], True: [0.5, 9.0, 0.5], "all": [0.5, 0.5, 0.5]}


def write(path, lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def test_records_and_seconds(tmp_path):
    path = write(tmp_path / "c.jsonl", [RECORDS[0], b"\n", RECORDS[1], b"  \n\n", RECORDS[2]])
    seen = []
    facts = build(path, progress=seen.append)
    assert (facts.records, facts.seconds, sum(seen)) == (3, 3.75, path.stat().st_size)
    corpus = Corpus(path, verify=True)
    assert [corpus[i] for i in range(len(corpus))] == RECORDS
    assert [corpus.seconds(i) for i in range(3)] == [1.5, 0.0, 2.25]
    with pytest.raises(IndexError, match="record 3 of 3"):
        corpus[3]
    with pytest.raises(IndexError):
        corpus.seconds(-1)


def test_durations_are_measured_where_records_have_none(tmp_path):
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", [0.1] * 8_000, 16_000)
    talk = {"conversations": [{"from": "human", "value": "<sound>"}, {"from": "gpt", "value": "Hi"}], "sound": "a.wav"}
    path = write(tmp_path / "c.jsonl", [talk, talk | {"duration": 9.0}, talk | {"sound": "b.wav", "duration": None}])
    for measure, seconds in MEASURES.items():
        build(path, measure=measure)
        corpus = Corpus(path)
        assert [corpus.seconds(i) for i in range(len(corpus))] == seconds
    (tmp_path / "b.wav").unlink()
    with pytest.raises(ValueError, match=r"c\.jsonl, line 3: .*b\.wav: no such file"):
        build(path, measure=True)


def test_a_last_line_without_newline(tmp_path):
    path = write(tmp_path / "c.jsonl", [RECORDS[0], json.dumps(RECORDS[2]).encode()])
    build(path)
    assert Corpus(path)[1] == RECORDS[2]


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3), min_size=1))
def test_any_records(tmp_path_factory, records):
    records = [{k: v for k, v in record.items() if k != "duration"} for record in records]
    path = write(tmp_path_factory.mktemp("any") / "c.jsonl", records)
    build(path)
    assert [Corpus(path)[i] for i in range(len(records))] == records


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no records"),
        ([b"\n\n"], "no records"),
        ([RECORDS[0], b"{broken\n"], "line 2: not JSON"),
        ([b"\xff\xfe\n"], "line 1: not JSON"),
        ([b"[1]\n"], r"c\.jsonl: a JSON array, not JSON Lines; `afn data import .*c\.jsonl OUT\.jsonl` makes a corpus"),
        ([b"1\n"], "line 1: a record is an object, not int"),
        ([b'{"a": ' * 100_000], "line 1: not JSON that can be read: nested too deeply"),
        ([b"[" * 100_000], "a JSON array"),
        ([{"duration": 1e39}], r"duration is 1e\+39, not a number of seconds up to 10⁶"),
        ([{"duration": 10**400}], "duration is 1000000000.*, not a number of seconds"),
        ([b'{"duration": 1' + b"0" * 5000 + b"}\n"], "line 1: not JSON"),
        ([{"duration": [1e308, 1e308]}], "not a number of seconds"),
        ([{"duration": [9e5, 9e5]}], r"the durations add up to 1\.8e\+06 s, more than 10⁶"),
        ([{"audios": [{"path": "a", "start": 0, "end": 1e39}]}], None),
        ([{"duration": "long"}], "duration is 'long'"),
        ([{"duration": -1}], "duration is -1"),
        ([b'{"duration": NaN}\n'], "duration is nan"),
    ],
)
def test_bad_corpus(tmp_path, lines, message):
    path = write(tmp_path / "c.jsonl", lines)
    if message is None:
        assert build(path).seconds == 0
        return
    with pytest.raises(ValueError, match=message) as error:
        build(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert [p.name for p in tmp_path.iterdir()] == ["c.jsonl"], "nothing is left behind"


def test_a_failed_build_keeps_the_index_that_was_there(tmp_path):
    path = write(tmp_path / "c.jsonl", RECORDS)
    build(path)
    with pytest.raises(ValueError, match="line 1: no sound"):
        build(path, check=lambda record: (_ for _ in ()).throw(ValueError("no sound")))
    assert len(Corpus(path)) == 3


def test_all_wrong_lines_are_named(tmp_path):
    lines = [RECORDS[0], b"{broken\n", RECORDS[2], {"duration": "x"}, b"7\n"]
    path = write(tmp_path / "c.jsonl", lines)
    with pytest.raises(ValueError) as error:
        build(path)
    said = str(error.value).splitlines()
    assert [line.partition(": ")[0] for line in said] == [f"{path}, line {number}" for number in (2, 4, 5)]
    write(path, [b"{\n"] * 150)
    with pytest.raises(ValueError, match=r"line 100: .*\nand 50 more wrong lines of 150$"):
        build(path)


def test_records_whose_audio_has_no_duration_are_counted(tmp_path):
    talk = {"conversations": [{"from": "human", "value": "<sound>"}, {"from": "gpt", "value": "Hi"}], "sound": "a.wav"}
    text = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "Hi"}]}
    path = write(tmp_path / "c.jsonl", [talk, talk | {"duration": 1}, text, {}, talk])
    assert build(path).unmeasured == 2


def test_what_changed_is_noticed(tmp_path):
    path = tmp_path / "c.jsonl"
    with pytest.raises(ValueError, match=r"c\.jsonl: no such file"):
        build(path)
    write(path, RECORDS)
    with pytest.raises(ValueError, match="no index; make one"):
        Corpus(path)
    build(path)
    before = path.stat().st_mtime_ns
    content = path.read_bytes()
    for written in (before + 1, before - 10**9, 0):
        path.write_bytes(content.replace(b"a.wav", b"b.wav"))
        os.utime(path, ns=(written, written))
        with pytest.raises(ValueError, match=r"fingerprint .* it has changed"):
            Corpus(path)
    path.write_bytes(content.replace(b"a.wav", b"b.wav"))
    os.utime(path, ns=(before, before))
    with pytest.raises(ValueError, match="fingerprint"):
        Corpus(path, verify=True)
    path.write_bytes(content + b"{}\n")
    with pytest.raises(ValueError, match="it has changed"):
        Corpus(path)
    path.write_bytes(content)
    os.utime(path, ns=(7, 7))
    first = Corpus(path).fingerprint
    os.utime(path, ns=(9, 9))
    assert Corpus(path).fingerprint == first, "a copy is the same data"
    assert json.loads((folder_of(path) / "facts.json").read_text())["written"] == 9, "which is not read whole again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts | {"version": 1}, "version 1, this is version 2; make it again with `afn data index"),
        (lambda facts: {"version": facts["version"]}, "other keys than an index has"),
        (lambda facts: facts | {"position": 1}, "other keys than an index has"),
        (lambda facts: facts | {"records": 3.0}, "no whole number"),
        (lambda facts: facts | {"seconds": "1"}, "its seconds are '1'"),
        (lambda facts: facts | {"fingerprint": None}, "no text"),
        (lambda facts: facts | {"records": 4}, "its index is damaged"),
        (lambda facts: facts | {"archives": "0"}, "its index is damaged"),
        (lambda facts: [], "expected a JSON object"),
        (lambda facts: None, "expected a JSON object"),
    ],
)
def test_edited_facts_are_one_line(tmp_path, change, message):
    path = write(tmp_path / "c.jsonl", RECORDS)
    build(path)
    file = folder_of(path) / "facts.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=message) as error:
        Corpus(path)
    assert "\n" not in str(error.value)
    build(path)
    assert len(Corpus(path)) == 3


def test_damaged_entries_are_one_line(tmp_path):
    path = write(tmp_path / "c.jsonl", RECORDS)
    build(path)
    entries = folder_of(path) / "entries"
    content = entries.read_bytes()
    for begin in (-5, 2**62, 10**9):
        entries.write_bytes(ENTRY.pack(begin, 1.0) + content[ENTRY.size :])
        with pytest.raises(ValueError, match="its index is damaged"):
            Corpus(path)[0]
    entries.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="index is damaged"):
        Corpus(path)
    entries.unlink()
    with pytest.raises(ValueError, match="index is damaged"):
        Corpus(path)


def tar(path, **members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1
            archive.addfile(member, io.BytesIO(data))


def test_tar_files_are_part_of_the_data(tmp_path):
    """A tar file that was replaced is refused whatever its time; one that was copied is the same data."""
    ask = [{"role": "user", "content": "<sound>"}, {"role": "assistant", "content": "A"}]
    record = {"audios": [{"path": "x.tar#a"}], "duration": 1, "messages": ask}
    path = write(tmp_path / "c.jsonl", [record])
    tar(tmp_path / "x.tar", a=b"1" * 600, b=b"2" * 600)
    build(path)
    state, first = os.stat(tmp_path / "x.tar"), Corpus(path).fingerprint
    os.utime(tmp_path / "x.tar", (5, 5))
    assert Corpus(path).fingerprint == first
    tar(tmp_path / "x.tar", b=b"2" * 600, a=b"1" * 600)
    for written in (state.st_mtime_ns - 10**9, state.st_mtime_ns + 10**9):
        os.utime(tmp_path / "x.tar", ns=(written, written))
        with pytest.raises(
            ValueError, match=r"its tar file .*x\.tar is not the one that was indexed; index it again with"
        ):
            Corpus(path)
    build(path)
    assert Corpus(path).fingerprint != first
    (tmp_path / "x.tar").unlink()
    with pytest.raises(ValueError, match=r"its tar file .*x\.tar: no such file"):
        Corpus(path)


def test_an_index_may_lie_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data" / "c.jsonl", RECORDS)
    monkeypatch.setenv("AFN_INDEX_DIR", str(tmp_path / "indexes"))
    build(path)
    assert [file.name for file in path.parent.iterdir()] == ["c.jsonl"]
    assert len(Corpus(path)) == 3
    assert folder_of(path).parent == tmp_path / "indexes"
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "c.jsonl", RECORDS[:1])
    build(other)
    assert (len(Corpus(path)), len(Corpus(other))) == (3, 1), "two corpora of one name"
    monkeypatch.delenv("AFN_INDEX_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="no index"):
        Corpus(path)


def test_where_the_folder_cannot_be_written_to_the_cache_serves(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def places(corpus):
        return [tmp_path / "file" / "c.index", tmp_path / "cache" / "c.index"]

    monkeypatch.setattr("afn_model.data.corpus_files.index_places", places)
    path = write(tmp_path / "c.jsonl", RECORDS)
    build(path)
    assert len(Corpus(path)) == 3
    monkeypatch.setattr("afn_model.data.corpus_files.index_places", lambda corpus: places(corpus)[:1])
    with pytest.raises(ValueError, match=r"no place for its index: .*; AFN_INDEX_DIR names one"):
        build(path)


def test_the_index_of_this_state_of_the_corpus_is_used(tmp_path, monkeypatch):
    """An index beside the corpus that could not be replaced does not hide a newer one in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(tmp_path / "c.jsonl", RECORDS)
    build(path)
    write(path, RECORDS[:2])
    monkeypatch.setenv("AFN_INDEX_DIR", str(tmp_path / "cache" / "afn" / "index"))
    build(path)
    monkeypatch.delenv("AFN_INDEX_DIR")
    assert len(Corpus(path)) == 2


def test_a_hundred_million_records(tmp_path):
    """A sparse index of 10⁸ entries, 2,000 of them real: time and memory of a worker that looks them up."""
    path = write(tmp_path / "c.jsonl", [RECORDS[0]])
    build(path)
    folder, length, count = folder_of(path), path.stat().st_size, 10**8
    facts = json.loads((folder / "facts.json").read_text()) | {"records": count}
    (folder / "facts.json").write_text(json.dumps(facts))
    places = random.Random(0).sample(range(0, count - 1, 2), 2000)
    entry = (folder / "entries").read_bytes()
    with (folder / "entries").open("r+b") as file:
        file.truncate(12 * (count + 1))
        for place in places:
            os.pwrite(file.fileno(), entry, 12 * place)
    assert len(entry) == 24
    code = f"""
        import resource, sys, time
        from afn_model.data.index import Corpus
        start = time.perf_counter()
        corpus = Corpus({str(path)!r})
        opened = time.perf_counter() - start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        for place in {places}:
            assert corpus[place]["id"] == "a"
        each = (time.perf_counter() - start) / {len(places)}
        print(opened, each, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    opened, each, kilobytes = map(float, done.stdout.split())
    print(f"{opened * 1e3:.1f} ms to open, {each * 1e6:.1f} µs a record, {kilobytes} KB; {length} bytes a line")
    assert opened < 2
    assert each < 200e-6, "50 µs on a quiet machine"
    assert kilobytes < 20_000


def test_two_processes_index_a_corpus_at_once(tmp_path, monkeypatch):
    path, others = write(tmp_path / "c.jsonl", RECORDS), [tmp_path / "c.jsonl.index"]
    rename = Path.rename

    def other_is_first(self, target):
        if target in others:
            others.remove(target)
            target.mkdir()
            (target / "facts.json").write_text("{}")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", other_is_first)
    build(path)
    assert len(Corpus(path)) == 3
    assert not others
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl", "c.jsonl.index"]
