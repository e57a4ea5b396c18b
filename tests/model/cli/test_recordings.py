"""Many recordings on a command line: which they are, errors among them, and a file of answers that grows."""

import io
import json
import os
import sys
import warnings
from pathlib import Path

import pytest

from afn_model.cli import main
from afn_model.cli.recordings import AnswerFile, expand
from tests.tiny import record, save_tiny, without_finish

FEW = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture
def talks(tmp_path, monkeypatch):
    """Five recordings in the current folder, the second of which is none."""
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        record(Path(f"{i}.wav"), 0.5 + 0.2 * i, i)
    Path("1.wav").write_bytes(b"Dear diary")
    return [f"{i}.wav" for i in range(5)]


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), without_finish(err).splitlines()

    return run


def test_names_folders_patterns_and_lists(talks, tmp_path, monkeypatch):
    assert expand(["0.wav", "nowhere.wav", "-"]) == ["0.wav", "nowhere.wav", "-"], "errors come when it is read"
    for name in ("deep/er/b.FLAC", "deep/a.m4a", "deep/notes.txt", "[x].wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert expand(["deep"]) == ["deep/a.m4a", "deep/er/b.FLAC"]
    assert expand(["[0-2].wav", "2.wav", "0.wav"]) == ["0.wav", "1.wav", "2.wav"]
    assert expand(["**/*.FLAC"]) == ["deep/er/b.FLAC"]
    assert expand(["s3://b/{1..2}.wav", "https://h/a?b"]) == ["s3://b/1.wav", "s3://b/2.wav", "https://h/a?b"]
    assert expand(["[x].wav"]) == ["[x].wav"], "a file of this very name"
    Path("all.txt").write_bytes(b"3.wav\n\n  4.wav \r\ncaf\xe9.wav\ndeep\n")
    assert expand(["0.wav"], ["all.txt"]) == [
        "0.wav",
        "3.wav",
        "4.wav",
        "caf\udce9.wav",
        "deep/a.m4a",
        "deep/er/b.FLAC",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("2.wav\n"))
    assert expand([], ["-"]) == ["2.wav"]
    Path("empty").mkdir()
    for arguments, lists, problem in (
        (["empty"], [], "^empty: no recording in this folder"),
        (["*.mp3"], [], r"^\*\.mp3: nothing is called like this"),
        ([], [], "^no recording given"),
        ([], ["nowhere.txt"], "^nowhere.txt: No such file"),
    ):
        with pytest.raises(ValueError, match=problem):
            expand(arguments, lists)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_bad_recording_does_not_end_the_work_on_the_others(run, model, talks, batch):
    good = [file for file in talks if file != "1.wav"]
    expected = run("transcribe", *good, "--model", model, *FEW)[1]
    code, out, err = run("transcribe", *talks, "nowhere.wav", "--model", model, "--batch", batch, *FEW)
    assert (code, out) == (1, expected)
    assert [line.partition(":")[0] for line in out] == good
    assert err[0].startswith("afn: error: 1.wav: not audio")
    assert err[1:] == ["afn: error: nowhere.wav: no such file", "afn: 2 of 6 recordings could not be used"]


def test_fail_fast(run, model, talks):
    code, out, err = run("caption", *talks, "--model", model, "--batch", 1, "--fail-fast", *FEW)
    assert (code, len(out), len(err)) == (2, 0, 1), "before anything is computed"
    assert err[0].startswith("afn: error: 1.wav: not audio")


def test_a_file_of_answers_is_gone_on_with(run, model, talks):
    arguments = ["transcribe", *talks, "--model", model, "--out", "answers.jsonl", *FEW]
    code, out, err = run(*arguments)
    assert (code, out, len(err)) == (1, [], 2)
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["audio"] for row in rows] == [[file] for file in talks if file != "1.wav"]
    texts = [line.partition(": ")[2] for line in run("transcribe", *talks, "--model", model, *FEW)[1]]
    assert [row["answer"] for row in rows] == texts
    assert {row["finish"] for row in rows} == {"length"}

    # Stopped while it wrote the fourth row; the second recording has come to its senses.
    whole = Path("answers.jsonl").read_bytes()
    record(Path("1.wav"), 0.7, 1)
    Path("answers.jsonl").write_bytes(whole[:-20])
    assert run(*arguments) == (0, [], [])
    again = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["audio"] for row in again] == [["0.wav"], ["2.wav"], ["3.wav"], ["1.wav"], ["4.wav"]]
    assert again[-1]["answer"] == rows[-1]["answer"]
    before = Path("answers.jsonl").read_bytes()
    assert run(*arguments) == (0, [], ["afn: answers.jsonl has answers about all 5 recordings"])
    assert run(*arguments, "--quiet") == (0, [], [])
    assert Path("answers.jsonl").read_bytes() == before


def test_a_file_of_other_answers_is_left_alone(run, model, talks):
    options = ["--model", model, "--out", "answers.jsonl", *FEW]
    assert run("transcribe", "0.wav", *options)[0] == 0
    assert run("transcribe", "0.wav", "--model", model, "--start", 0.1, "--out", "part.jsonl", *FEW)[0] == 0
    for arguments, problem in (
        (["caption", "0.wav", *options], "line 1: question 'Transcribe the input speech.' instead of 'Generate"),
        (["transcribe", "2.wav", *options, "--start", 0.1], "line 1: start None instead of 0.1"),
        (["transcribe", "2.wav", *options, "--system", "Be brief."], "line 1: system None instead of 'Be brief.'"),
        (["transcribe", "2.wav", "--model", model, "--out", "part.jsonl"], "line 1: start 0.1 instead of None"),
        (["transcribe", "2.wav", "--model", "other", "--out", "answers.jsonl"], "line 1: model '"),
        (["transcribe", "2.wav", "--model", model, "--out", "2.wav"], "2.wav, line 1: not an answer"),
        (["transcribe", "2.wav", "--model", model, "--out", "notes.txt"], "notes.txt: not a file that --out has"),
        (["transcribe", "2.wav", "--model", model, "--out", "rows.jsonl"], "rows.jsonl, line 1: not an answer"),
        (["transcribe", "2.wav", "--model", model, "--out", "."], ".: Is a directory"),
    ):
        Path("notes.txt").write_text("Dear diary, no line ends here")
        Path("rows.jsonl").write_text('{"id": 1}\n')
        before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
        code, out, err = run(*arguments)
        assert (code, out, len(err)) == (2, [], 1)
        assert problem in err[0]
        assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_answers_are_in_the_file_as_they_come(tmp_path):
    file = AnswerFile(tmp_path / "answers.jsonl", {"question": "?"})
    for name in ("é.wav", "caf\udce9.wav"):
        file.write({"model": "m", "audio": [name], "question": "?", "answer": "你好"})
    assert AnswerFile(tmp_path / "answers.jsonl", {"question": "?"}).done == {"é.wav", "caf\udce9.wav"}
    assert "你好" in (tmp_path / "answers.jsonl").read_text("utf-8")


def test_standard_input_is_a_recording(run, model, talks, monkeypatch):
    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    options = ["--model", model, *FEW]
    recording = Path("2.wav").read_bytes()
    expected = run("ask", "2.wav", "What is said?", *options)
    assert expected[0] == 0
    given(recording)
    assert run("ask", "-", "What is said?", *options) == expected
    given(recording)
    both = run("ask", "0.wav", "2.wav", "Which?", "--json", *options)[1]
    found = run("ask", "0.wav", "-", "Which?", "--json", *options)[1]
    assert json.loads(found[0])["answer"] == json.loads(both[0])["answer"]
    assert json.loads(found[0])["audio"] == ["0.wav", "-"]
    given(recording)
    out = run("transcribe", "-", "0.wav", *options)[1]
    assert out == [line.replace("2.wav", "-") for line in run("transcribe", "2.wav", "0.wav", *options)[1]]
    for data, arguments, problem in (
        (b"", ["-", "?"], "standard input: the file is empty"),
        (b"Dear diary", ["-", "?"], "standard input: not audio"),
        (recording, ["-", "-", "?"], "standard input is one recording"),
        (recording, ["-"], "-: a recording without a question"),
    ):
        given(data)
        code, out, err = run("ask", *arguments, *options)
        assert (code, out, len(err)) == (2, [], 1)
        assert problem in err[0]


def test_standard_input_is_another_recording_every_time(run, model, talks, monkeypatch):
    for file in ("0.wav", "2.wav"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(file).read_bytes())))
        assert run("transcribe", "-", file, "--model", model, "--out", "answers.jsonl", *FEW) == (0, [], [])
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["audio"] for row in rows] == [["-"], ["0.wav"], ["-"], ["2.wav"]]
    assert [row["answer"] for row in rows[::2]] == [row["answer"] for row in rows[1::2]]


def test_a_terminal_is_no_recording(run, model, monkeypatch):
    class Keyboard(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Keyboard())
    assert run("ask", "-", "?", "--model", model)[2] == [
        "afn: error: -: standard input is a terminal; send a recording through a pipe"
    ]


def test_quiet(run, model, talks):
    processor = json.loads(Path(model, "processor_config.json").read_text())
    short = Path("short")
    short.mkdir()
    for file in Path(model).iterdir():
        os.symlink(file, short / file.name)
    (short / "processor_config.json").unlink()
    (short / "processor_config.json").write_text(json.dumps(processor | {"max_audio_len": 0.6}))
    arguments = ["ask", "4.wav", "?", "--model", short, *FEW]
    code, out, err = run(*arguments)
    assert (code, err) == (0, ["afn: warning: 4.wav: longer than 0.6 s; the rest is left out"])
    assert run(*arguments, "--quiet") == (0, out, [])
    assert warnings.filters[0][0] != "ignore" or warnings.filters[0][2] is not Warning


class TerminalForErrors(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self):
        return True


def test_progress_on_a_terminal(run, model, talks, monkeypatch):
    def lines(*arguments) -> list[str]:
        terminal = TerminalForErrors()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr("afn_model.cli.session.REDRAWN", 0.0)
        run("transcribe", *arguments, "--model", model, *FEW)
        return [line.strip() for line in terminal.getvalue().replace("\n", "\r").split("\r")]

    found = lines("0.wav", "2.wav", "3.wav", "--batch", 2)
    for text in (
        "file 1 of 3: reading",
        "file 1 of 3: listening, 0%",
        "files 1 to 2 of 3: answering, 3 tokens",
        "file 3 of 3: listening, 100%",
    ):
        assert any(line.startswith(text) for line in found), text
    assert any("67%" in line for line in found if line.startswith("file 3 of 3: answering"))
    alone = lines("0.wav")
    assert any(line.startswith("listening, 100%") for line in alone)
    assert not any("file" in line for line in alone)
    assert lines("0.wav", "2.wav", "--quiet") == [""]
