"""The same question about every recording: pieces, files, what is said besides; the model is a stand-in but for one."""

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest

from afn_model import Session
from afn_model.cli import main
from afn_model.cli.each import AskedRecording, Piece, in_order, timed
from afn_model.infer.answer import Answer
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.speech_task import add_task_tokens
from tests.model.infer.text_endpoint import reply, text_endpoint
from tests.tiny import record, save_tiny, tokenizer

FEW = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


@pytest.fixture
def asked(monkeypatch):
    """Stands in for the model: answers "[0:00.1] a" about a file a.wav; keeps what it is asked, and how."""
    calls = []

    def answers(_, conversations, params, **options):
        calls.append((conversations, params, options))
        for place, conversation in enumerate(conversations):
            part = conversation[-1]["content"][0]
            name = Path(getattr(part.get("audio"), "name", part.get("path"))).stem
            finish = "repetition" if name == "loop" else "stop"
            seconds = dict.fromkeys(("read", "load", "first_token", "total"), 0.5)
            yield place, Answer(f"[0:00.1] {name}", 10, 3, finish, seconds, 1)

    monkeypatch.setattr(Session, "answers", answers)
    return calls


def parts(call) -> list[tuple]:
    return [tuple(c[-1]["content"][0].get(name) for name in ("path", "start", "end")) for c in call[0]]


def test_pieces_are_answered_as_parts_are(run, model):
    record(Path("talk.wav"), 2.5)
    code, out, err = run("transcribe", "talk.wav", "--model", model, "--chunk-seconds", 1, "--json", *FEW)
    why = "afn: the answer was cut off in {0} of {0} pieces (--max-new-tokens, or the model's context): finish length"
    row = json.loads(out[0])
    bounds = [(one["start"], one["end"]) for one in row["segments"]]
    assert len(bounds) >= 3
    assert (code, err) == (0, [why.format(len(bounds))])
    texts = []
    for start, end in bounds:
        part = ["--start", start] + (["--end", end] if end < 2.5 else [])
        texts += run("transcribe", "talk.wav", "--model", model, *part, *FEW)[1]
    assert row["answer"].split("\n") == texts
    assert [one["text"] for one in row["segments"]] == texts
    assert row["times"] == "none"
    assert row["finish"] == "length"
    assert row["tokens"]["answer"] == 4 * len(bounds)


def test_what_is_longer_than_the_context_is_cut(run, model, asked):
    record(Path("talk.wav"), 200.0, rate=8_000)
    code, out, _ = run("transcribe", "talk.wav", "--model", model)
    assert (code, len(asked)) == (0, 1)
    (conversations, params, _), seconds = asked[0], [(s, e) for _, s, e in parts(asked[0])]
    # 4,096 positions are 31 tokens a second of audio and transcript.
    assert len(conversations) == 2
    assert seconds[0][0] is None
    assert seconds[0][1] == seconds[1][0] < 4096 / 31
    assert seconds[1][1] is None
    assert params.max_new_tokens == 1024
    assert re.fullmatch(r"\[00:00.1\] talk|\[0:00.1\] talk", out[0])
    offset = seconds[1][0] + 0.1
    assert out[1] == f"[{int(offset // 60):02d}:{offset % 60:04.1f}] talk"
    run("transcribe", "talk.wav", "--model", model, "--strict")
    assert parts(asked[1]) == [("talk.wav", None, None)]
    run("transcribe", "talk.wav", "--model", model, "--strict", "--chunk-seconds", 60)
    assert len(parts(asked[2])) == 4


def test_what_a_transcript_may_have_depends_on_the_recording(run, model, asked, monkeypatch):
    monkeypatch.setattr("afn_model.audio.pieces.measured_seconds", lambda audio: 1500.0)
    monkeypatch.setattr("afn_model.cli.each.Asking.longest", property(lambda _: 1800.0, lambda *_: None), raising=False)
    Path("talk.wav").touch()
    for options, tokens in (((), 9000), (FEW, 4)):
        run("transcribe", "talk.wav", "--model", model, *options)
        assert asked[-1][1].max_new_tokens == tokens
        assert asked[-1][2]["batch_size"] == 46_080 // tokens
    run("caption", "talk.wav", "--model", model)
    assert asked[-1][1].max_new_tokens == 1024


def test_files_of_a_folder(run, model, asked):
    for name in ("talks/a.wav", "talks/b/a.wav", "talks/a.flac"):
        record(Path(name), 0.5)
    options = ["--model", model, "--out-dir", "out", "--format", "srt,txt"]
    assert run("transcribe", "talks", *options) == (0, [], [])
    files = {str(path.relative_to("out")): path.read_text() for path in Path("out").rglob("*") if path.is_file()}
    rows = [json.loads(line) for line in files.pop("answers.jsonl").splitlines()]
    assert {row["name"]: row["audio"] for row in rows} == {
        "a": ["talks/a.flac"],
        "a.wav": ["talks/a.wav"],
        "b/a": ["talks/b/a.wav"],
    }
    cue = "1\n00:00:00,100 --> 00:00:00,500\na\n"
    assert files == {
        f"{name}.{form}": text
        for name in ("a", "a.wav", "b/a")
        for form, text in (("srt", cue), ("txt", "[0:00.1] a\n"))
    }

    # Nothing is asked twice: not by the next run, nor for another format, nor for a file that has gone.
    assert run("transcribe", "talks", *options) == (0, [], ["afn: out has answers about all 3 recordings"])
    Path("out/a.srt").unlink()
    record(Path("talks/c.wav"), 0.5)
    assert run("transcribe", "talks", "--model", model, "--out-dir", "out", "--format", "all") == (0, [], [])
    assert Path("out/a.srt").read_text() == cue
    assert len(list(Path("out").rglob("*.vtt"))) == 4
    assert json.loads(Path("out/b/a.json").read_text())["segments"] == [
        {"id": 0, "start": 0.1, "end": 0.5, "text": "a"}
    ]
    assert [len(call[0]) for call in asked] == [3, 1]
    assert run("transcribe", "talks/b/a.wav", *options, "--overwrite")[0] == 0
    assert [len(call[0]) for call in asked] == [3, 1, 1]
    assert len(Path("out/answers.jsonl").read_text().splitlines()) == 4


def test_a_run_that_was_killed_is_gone_on_with(run, model, asked, monkeypatch):
    files = [record(Path(f"{name}.wav"), 0.5) for name in "abc"]
    arguments = ["transcribe", *files, "--model", model, "--out-dir", "out", "--format", "vtt"]

    def killed(path, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("afn_model.cli.out_folder.write_text", killed)
        assert run(*arguments)[0] == 130
    assert [path.name for path in Path("out").iterdir()] == ["answers.jsonl"]
    assert run(*arguments) == (0, [], [])
    assert {path.name for path in Path("out").iterdir()} == {"answers.jsonl", "a.vtt", "b.vtt", "c.vtt"}
    assert [Path(path).stem for path, _, _ in parts(asked[1])] == ["b", "c"]


def test_other_peoples_files_stay(run, model, asked):
    record(Path("a.wav"), 0.5)
    Path("out").mkdir()
    Path("out/a.txt").write_text("Dear diary")
    arguments = ["transcribe", "a.wav", "--model", model, "--out-dir", "out"]
    code, _, err = run(*arguments)
    assert (code, len(asked)) == (2, 0)
    assert err == [
        f"afn: error: {Path('out/a.txt')}: is there, and not of this question; choose another folder or --overwrite"
    ]
    assert run(*arguments, "--format", "srt")[0] == 0
    code, _, err = run("caption", *arguments[1:], "--format", "srt")
    assert code == 2
    assert "question 'Transcribe the input speech.' instead of 'Generate" in err[0]
    record(Path("b.wav"), 0.5)
    code, _, err = run("caption", "b.wav", *arguments[2:], "--format", "srt", "--overwrite")
    assert (code, len(err)) == (2, 1), "the answer about a.wav would be lost"
    assert run("caption", *arguments[1:], "--format", "srt", "--overwrite") == (0, [], [])
    assert Path("out/a.txt").read_text() == "Dear diary"


def test_one_goes_wrong(run, model, asked):
    record(Path("good.wav"), 0.5)
    Path("bad.wav").write_bytes(b"Dear diary")
    code, out, err = run("transcribe", "missing.wav", "bad.wav", "good.wav", "--model", model, "--out-dir", "out")
    assert (code, out, len(err)) == (1, [], 3)
    assert err[0] == "afn: error: missing.wav: no such file"
    assert err[2] == "afn: 2 of 3 recordings could not be used"
    assert Path("out/good.txt").exists()


def test_a_piece_that_goes_wrong_is_one_error(run, model, monkeypatch):
    record(Path("a.wav"), 2.5)

    def answers(_, conversations, *__, **___):
        yield from ((place, ValueError(f"a.wav: piece {place}")) for place in range(len(conversations)))

    monkeypatch.setattr(Session, "answers", answers)
    assert run("transcribe", "a.wav", "--model", model, "--chunk-seconds", 1) == (1, [], ["afn: error: a.wav: piece 0"])


def test_a_subtitle_on_standard_output_and_from_a_pipe(run, model, asked, monkeypatch):
    talk = record(Path("talk.wav"), 2.5)
    code, out, err = run("transcribe", talk, "--model", model, "--format", "srt", "--offset", 1, "--duration", 1)
    assert (code, out, err) == (0, ["1", "00:00:01,100 --> 00:00:02,000", "talk"], [])
    assert parts(asked[0]) == [("talk.wav", 1.0, 2.0)]
    for name in ("-", "pipe"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(talk).read_bytes())))
        if name == "pipe":
            read, write = os.pipe()
            with open(write, "wb") as end:
                end.write(Path(record(Path("short.wav"), 1.5)).read_bytes())
            name = f"/dev/fd/{read}"
        assert run("transcribe", name, "--model", model, "--format", "tsv", "--chunk-seconds", 1)[0] == 0
    assert [len(call[0]) for call in asked] == [1, 3, 2]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["transcribe", "a.wav", "b.wav", "--format", "srt"], "--format srt makes several files: --out-dir says where"),
        (["transcribe", "a.wav", "--format", "srt,json"], "--format srt,json makes several files"),
        (["transcribe", "a.wav", "--format", "docx"], "no format 'docx'; there are txt, json, srt, vtt, tsv and all"),
        (["transcribe", "a.wav", "--out", "x", "--format", "srt"], "files in other formats need --out-dir"),
        (["transcribe", "a.wav", "--out", "x", "--out-dir", "y"], "files in other formats need --out-dir"),
        (["transcribe", "a.wav", "--overwrite"], "--overwrite needs --out or --out-dir"),
        (["transcribe", "a.wav", "--end", "1", "--duration", "1"], "--end and --duration both"),
        (["transcribe", "a.wav", "--chunk-seconds", "0.5"], "'0.5' is not a number of seconds, 1 or more"),
        (["transcribe", "a.wav", "--task", "translate"], "--task translate needs --language"),
        (["transcribe", "a.wav", "--language", "qq"], "--language qq: no such code"),
        (["transcribe", "a.wav", "--to", "de"], "--to is for --task translate"),
        (["transcribe", "a.wav", "--task", "lyrics", "--diarize"], "--diarize is for --task transcribe"),
        (["ask", "a.wav", "?", "--out-dir", "x"], "--out-dir is for questions about every recording by itself: --each"),
        (["ask", "a.wav", "?", "--adapter", "nowhere"], "--adapter nowhere: no peft adapter"),
        (["ask", "a.wav", "?", "--device", "gpu"], "device 'gpu': PyTorch knows none of this name"),
    ],
)
def test_options_that_do_not_go_together(run, model, arguments, problem):
    code, out, err = run(*arguments, "--model", model)
    assert (code, out, len(err)) == (2, [], 1)
    assert problem in err[0]


@pytest.mark.parametrize(
    ("options", "question"),
    [
        ([], "Transcribe the input speech."),
        (["--task", "translate", "--language", "de"], "Translate any speech you hear from German into English."),
        (
            ["--task", "translate", "--language", "Swiss German", "--to", "fr"],
            "Translate any speech you hear from Swiss German into French.",
        ),
        (
            ["--language", "ja", "--initial_prompt", "Names: Ono."],
            "Transcribe the input speech. The language is Japanese. Names: Ono.",
        ),
        (["--task", "lyrics"], "Generate a lyrics transcription from the input song."),
        (
            ["--diarize"],
            "Transcribe the input audio. If multiple speakers are present, provide diarized transcripts with speaker"
            " labels.",
        ),
    ],
)
def test_prompts(run, model, asked, options, question):
    record(Path("a.wav"), 0.5)
    assert run("transcribe", "a.wav", "--model", model, *options)[0] == 0
    assert asked[0][0][0][-1]["content"][1]["text"] == question


def test_why_an_answer_ended_is_said(run, model, asked):
    files = [record(Path(f"{name}.wav"), 0.5) for name in ("a", "loop")]
    said = "afn: loop.wav: the answer was ended as it went round in circles: finish repetition"
    assert run("ask", *files, "What?", "--each", "--model", model)[2] == [said]
    assert run("ask", *files, "What?", "--each", "--model", model, "--quiet")[2] == []
    assert run("transcribe", "loop.wav", "--model", model)[2] == [said.replace("loop.wav: ", "")]
    assert len({call[1].seed for call in asked}) == 1


def test_progress_of_one_recording_in_pieces(run, model, asked, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    record(Path("a.wav"), 2.5)
    answers = Session.answers

    def with_progress(*arguments, **options):
        for place, found in answers(*arguments, **options):
            options["on_progress"]("decode", [place], 3, 4)
            yield place, found

    monkeypatch.setattr(Session, "answers", with_progress)
    monkeypatch.setattr("afn_model.cli.session.REDRAWN", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    run("transcribe", "a.wav", "--model", model, "--chunk-seconds", 1)
    assert re.search(r"answering, 3 tokens +\d\d%\|.*left", terminal.getvalue())


def test_in_order():
    found = [AskedRecording(number, str(number)) for number in (2, 0, 3, 1)]
    found[0].error = ValueError("2")
    assert [one.number for one in in_order(iter(found))] == [2, 0, 1, 3]


def test_a_piece_without_usable_times_is_one_segment():
    texts = ("[0:01] One.", "<think>[0:01]</think>Two.", "[0:59] Three.", " ")
    pieces = [Piece({}, 10.0 * i, 10.0 * i + 10, Answer(text, 1, 1, "stop", {}, 1)) for i, text in enumerate(texts)]
    assert timed(AskedRecording(0, "a.wav", pieces)) == {
        "segments": [
            {"start": 1.0, "end": 10.0, "text": "One."},
            {"start": 10.0, "end": 20.0, "text": "Two."},
            {"start": 20.0, "end": 30.0, "text": "[0:59] Three."},
        ],
        "times": "model, none, past end",
    }


def test_a_text_model_answers_about_captions(run, model, asked, monkeypatch):
    monkeypatch.setenv("AFN_THEN_KEY", "k")
    files = [record(Path(f"{name}.wav"), 1.5) for name in "ab"]
    with text_endpoint(lambda body: reply(f"so: {body['messages'][0]['content'][-6:]}")) as there:
        then = ["--then", there.url, "--then-question", "Is it?", "--model", model]
        assert run("caption", *files, *then) == (0, ["a.wav: so: Is it?", "b.wav: so: Is it?"], [])
        said = "[Recording 1, 1.5 s. What is to be heard in it: [0:00.1] a]\nIs it?"
        assert there.asked[1] == (
            "POST /v1/chat/completions",
            "Bearer k",
            {"model": "first", "messages": [{"role": "user", "content": said}]},
        )
        code, out, _ = run("caption", "a.wav", *then, "--then-model", "own", "--json", "--start", 0.5)
        row = json.loads(out[0])
        assert (row["caption"], row["answer"], there.last["model"]) == ("[00:00.6] a", "so: Is it?", "own")
        assert (row["then_question"], row["then_model"]) == ("Is it?", "own")
        assert row["segments"] == [{"start": 0.5, "end": 1.5, "text": row["answer"]}]
    code, out, err = run("caption", *files, *then)
    assert (code, out, len(err)) == (1, [], 3)
    assert "nobody answers" in err[0]
    for given in (["--then-question", "?"], ["--then", "http://127.0.0.1:9"]):
        code, _, err = run("caption", "a.wav", *given, "--model", model)
        assert (code, "--then" in err[0]) == (2, True)


@pytest.mark.parametrize(
    ("own", "options", "question"),
    [
        (True, (), "<|en|><|transcribe|><|notimestamps|>"),
        (True, ("--language", "German"), "<|de|><|transcribe|><|notimestamps|>"),
        (True, ("--diarize", "--language", "de"), "<|de|><|speakers|><|notimestamps|>"),
        (True, ("--task", "translate", "--language", "en", "--to", "de"), "<|de|><|translate|><|notimestamps|>"),
        (False, ("--task", "translate", "--language", "de"), "<|de|><|translate|><|notimestamps|>"),
        (False, ("--task", "translate", "--language", "en", "--to", "de"), "Whisper translates into English"),
        (True, ("--language", "fr"), "language fr: the tokenizer has no token <|fr|>"),
        (True, ("--prompt", "Ada"), "a speech decoder has no --prompt"),
    ],
)
def test_a_speech_folder_is_asked_for_a_task(run, monkeypatch, tmp_path, own, options, question):
    asked = []
    monkeypatch.setattr("afn_model.cli.speech.write_down", lambda _, text: asked.append(text) or 0)
    words = tokenizer()
    if own:
        add_task_tokens(words, ["en", "de"], times=False)
    else:  # Whisper has no task of captions
        words.add_tokens(["<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>"])
    AFNextProcessor(words).save_pretrained(tmp_path / "speech")
    (tmp_path / "speech/config.json").write_text('{"model_type": "whisper"}')
    record(tmp_path / "a.wav", 1.0)
    code, _, err = run("transcribe", "a.wav", "--model", "speech", *options)
    if code == 0:
        assert asked == [question]
    else:
        assert question in err[-1]
