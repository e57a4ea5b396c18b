"""Standard streams that are closed, full or gone: a line and an exit code, never a traceback."""

import subprocess
import sys

import pytest

from afn_model.cli import main
from afn_model.weights.checkpoint import find_layout
from tests.tiny import record, save_tiny

AFN = f"{sys.executable} -m afn_model.cli"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def shell(line: str) -> tuple[int, str, str]:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("ask 'What?' --model m >&-", 2, "afn: error: standard output is closed: there is nowhere to print to\n"),
        ("--version >&-", 0, ""),
        ("--version > /dev/full", 2, "afn: error: No space left on device\n"),
        ("sing 2>&-", 2, ""),
        ("ask 'What?' --model nowhere <&- >&- 2>&-", 2, ""),
    ],
)
def test_from_a_shell(line, code, error):
    assert shell(f"{AFN} {line}") == (code, "", error)


def test_without_stdin_a_chat_has_nothing_to_answer(model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", "--model", str(model)]) == 0


def test_without_stderr_answers_are_printed(model, monkeypatch, capsys):
    arguments = ["ask", "What is said?", "--model", str(model), "--max-new-tokens", "4"]
    assert main(arguments) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stderr", None)
    assert main(arguments) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["transcribe", "nowhere.wav", "--model", str(model)]) == 1


def test_without_stdout_files_are_written(model, monkeypatch, tmp_path):

    file, out = record(tmp_path / "talk.wav", 0.5), tmp_path / "answers.jsonl"
    arguments = ["transcribe", file, "--model", str(model), "--max-new-tokens", "2"]
    monkeypatch.setattr(sys, "stdout", None)
    assert main([*arguments, "--out", str(out)]) == 0
    assert out.read_text().count("\n") == 1
    monkeypatch.setattr(sys, "stdout", None)
    assert main(arguments) == 2
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["convert", str(model), str(tmp_path / "copy"), "--layout", "native"]) == 0
    assert find_layout(tmp_path / "copy") == "native"


def test_without_stdout_a_run_is_drawn(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("afn_model.train.plot.plot", lambda run, out: drawn.append(run) or [run / "losses.png"])
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["train", "plot", str(tmp_path)]) == 0
    assert drawn == [tmp_path]
