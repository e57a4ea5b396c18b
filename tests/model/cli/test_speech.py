"""``afn transcribe`` with a folder of the speech decoder: rows, subtitles of words, streams, and what is refused."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
import soundfile

from afn_model.bootstrap.tiny_speech import untrained
from afn_model.cli import main
from afn_model.cli.prompts import caption_task
from afn_model.prompt.questions import TRANSCRIBE
from tests.model.af_whisper import speech_model
from tests.tiny import record, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    model, processor = speech_model(seed=5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in ("transcribe", *arguments, "--max-new-tokens", 8)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_rows_and_words(run, folder, tmp_path):
    files = [record(tmp_path / "a.wav", 2.0), record(tmp_path / "b.wav", 3.0, seed=1)]
    code, out, err = run(*files, "--asr", folder, "--json", "--words", "--beams", 2, "--length-penalty", 0.5)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["audio"] for row in rows] == [[str(file)] for file in files]
    assert "in 1 of 1 windows" in err
    for row in rows:
        words = [word for segment in row["segments"] for word in segment["words"]]
        assert " ".join(word["word"] for word in words) == " ".join(row["answer"].split()) != ""
        assert all(0 <= word["start"] <= word["end"] <= 3.02 for word in words)
        assert (row["question"], row["times"], row["beams"], row["words"]) == (TRANSCRIBE, "attention", 2, True)
        assert row["windows"] == {"count": 1, "again": 0, "circles": 0}
    code, out, _ = run(files[0], "--model", folder, "--json")
    (plain,) = json.loads(out)["segments"]
    assert (plain["start"], plain["end"]) == (0, 2)
    code, out, _ = run(files[0], "--model", folder, "--words", "--format", "srt")
    assert re.match(r"1\n00:00:0\d,\d\d\d --> 00:00:0\d,\d\d\d\n", out)


def test_a_stream_of_a_file_and_of_standard_input(run, folder, tmp_path, monkeypatch):
    file = record(tmp_path / "a.wav", 2.5)
    code, out, err = run(file, "--asr", folder, "--stream")
    assert (code, err) == (0, "")
    assert out.strip()
    pcm = soundfile.read(file, dtype="int16")[0].tobytes() + b"\0"  # half a sample is no sample
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm), isatty=lambda: False))
    assert run("-", "--asr", folder, "--stream") == (0, out, "")
    code, _, err = run("-", "--asr", folder, "--stream")  # nothing more comes
    assert (code, err) == (2, "afn: error: -: 0 samples of audio are too few for a token\n")


def test_empty_and_silent_recordings(run, folder, tmp_path):
    soundfile.write(tmp_path / "empty.wav", [], 16_000)
    soundfile.write(tmp_path / "silent.wav", [0.0] * 16_000, 16_000)
    code, out, err = run("empty.wav", "silent.wav", "--asr", folder)
    assert (code, out) == (1, "silent.wav: \n")
    assert err.count("\n") == 2
    assert "empty.wav" in err
    assert "1 of 2 recordings could not be used" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--beams", 0], "'0' is not a positive whole number"),
        (["--length-penalty", "nan"], "length_penalty must be a number, got nan"),
        (["--temperature", 0.5], "temperature 0"),
        (["--seed", 1], "--seed is of no use"),
        (["--quantize", "int8"], "--quantize is for a language model"),
        (["--stream", "--json"], "--stream prints text, without --json"),
        (["--stream", "a.wav"], "--stream is for one recording, got 2"),
    ],
)
def test_what_is_refused(run, folder, tmp_path, options, told):
    record(tmp_path / "a.wav", 1.0)
    record(tmp_path / "b.wav", 1.0)
    code, out, err = run("b.wav", "--asr", folder, *options)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_options_of_another_model(run, tmp_path):
    whole = save_tiny(tmp_path / "whole")
    record(tmp_path / "a.wav", 1.0)
    for options in (["--beams", 3], ["--words"], ["--stream"], ["--length-penalty", 1]):
        code, _, err = run("a.wav", "--model", whole, *options)
        assert code == 2
        assert f"{options[0]} is for an encoder with a decoder of its own" in err


def test_captions_are_asked_for_by_their_token(run, folder, tmp_path, capsys):
    assert caption_task(str(folder)) is None  # no such token
    model, processor = untrained(0)
    model.save_pretrained(tmp_path / "tasks")
    processor.save_pretrained(tmp_path / "tasks")
    file = record(tmp_path / "a.wav", 1.0)
    assert main(["caption", str(file), "--model", str(tmp_path / "tasks"), "--json", "--max-new-tokens", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "<|en|><|caption|><|notimestamps|>"
