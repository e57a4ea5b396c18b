"""``afn talk``: texts and spoken questions into sound, live ones with interruptions, and what is refused."""

import io
import json
import queue
import sys
import threading
import wave
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from afn_model.cli import main, sound, talk
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.speech.conversation import VoiceConversation
from tests.model.speech.small_voice import RATE, small_voice
from tests.model.speech.tones import FRAME, tones
from tests.tiny import record, save_tiny, tiny

FEW = ("--max-new-tokens", "6")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice")
    small_voice().save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys, model, voice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=model):
        words = ["talk", *arguments, "--voice", voice, *(() if model is None else ("--model", model))]
        code = main([str(one) for one in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_text_in_somebody_s_voice(run, tmp_path):
    clip = record(tmp_path / "ann.wav", 1.5)
    code, out, err = run("--text", "**A dog barks.**", "--out", "a.wav", "--json", "--seed", 3,
                         "--speaker", clip, "--consent", "Ann, 1 May 2026")  # fmt: skip
    row = json.loads(out)
    with wave.open("a.wav") as file:  # which needs to know how long it is
        assert (file.getframerate(), file.getnchannels()) == (RATE, 1)
        assert file.getnframes() / RATE == row["speech"]["audio"] > 0
    assert (code, err, row["answer"]) == (0, "", "**A dog barks.**")
    assert row["finish"] in ("end", "length")
    assert row["speech"]["after_token"] >= 0
    code, out, err = run("--text", "A dog barks.", "--out", "a.flac")
    assert (code, out) == (0, "")
    assert "s of sound, the first after" in err
    assert soundfile.info("a.flac").samplerate == RATE


def test_questions_are_one_conversation(run, tmp_path, monkeypatch):
    files = [record(tmp_path / f"{seed}.wav", 1.0, seed) for seed in range(2)]
    code, out, err = run(*files, files[0], "--out", "a.wav", "--json", "--prompt", "What is said?", *FEW)
    first, *others = rows = [json.loads(line) for line in out.splitlines()]
    total = sum(row["speech"]["audio"] for row in rows) * RATE
    assert (code, len(others), soundfile.info("a.wav").frames) == (0, 2, round(total))
    assert first["speech"]["after_question"] >= first["speech"]["after_token"]
    assert err.count("finish length") == 3
    _, out, err = run(*files, "--out", "a.wav", "--quiet", "--prompt", "What is said?", *FEW)
    assert (out, err) == (f"{first['answer']}\n{others[0]['answer']}\n", "")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=raw, flush=lambda: None, isatty=lambda: False))
    code, _, err = run(files[0], "--out", "-", *FEW, "--prompt", "What is said?")
    assert code == 0
    assert first["answer"] in err
    assert len(raw.getvalue()) == pytest.approx(2 * 24_000 * first["speech"]["audio"], abs=2)


class HeardSound:
    """Takes sound, and is told to stop."""

    def __init__(self):
        self.samples, self.stopped = 0, 0

    def write(self, pcm):
        self.samples += len(pcm)

    def stop(self):
        self.stopped += 1


@pytest.fixture(scope="module")
def pair():
    return tiny()


@pytest.fixture
def talking(pair):
    model, processor = pair
    made = VoiceConversation(Engine(model, processor, pages=60), tones(processor.tokenizer))
    args = Namespace(system=None, prompt=None, json=True, quiet=True, out=None, model="tiny", threshold=0.5)
    params = SamplingParams(max_new_tokens=40, stop_token_ids=())
    return talk.Talking(made, processor, params, HeardSound(), args)


LOUD = (8000 * np.sin(np.arange(320))).astype(np.int16)
STILL = np.zeros(320, dtype=np.int16)


def test_a_question_ends_in_quiet_and_a_new_one_ends_the_answer(talking, capsys):
    ear = talk.Ear(talking, 0.5)
    for piece in [STILL] * 40 + [LOUD] * 60 + [STILL] * 34:
        ear.hear(piece)
        assert not talking.busy
    ear.hear(STILL)  # 0.7 s of quiet
    assert talking.busy
    (question,) = talking.messages
    assert len(question["content"][0]["audio"]) == 320 * (15 + 60 + 35)  # 0.3 s before it was loud
    for _ in range(10):
        talking.step()
    heard, stopped = talking.out.samples, talking.out.stopped
    assert heard >= 5 * FRAME
    ear.hear(np.concatenate([LOUD] * 2))
    assert talking.busy  # a click
    ear.hear(np.concatenate([LOUD] * 2))
    assert not talking.busy
    assert talking.out.stopped == stopped + 1
    talking.step()
    assert talking.out.samples == heard
    row = json.loads(capsys.readouterr().out)
    assert row["finish"] == "closed"
    assert [message["role"] for message in talking.messages] == ["user", "assistant"]
    ear.hear(np.concatenate([LOUD] * 40))
    ear.end()  # nothing more comes: what was said is the question
    talking.finish()
    assert json.loads(capsys.readouterr().out)["finish"] == "end"
    assert talking.conversation.answers.engine.streams == []


def test_an_answer_that_fails_is_told_and_the_next_one_is_given(talking, capsys):
    pieces = queue.Queue()
    for piece in [LOUD] * 30 + [STILL] * 40:
        pieces.put(piece)
    answers = talking.conversation.answers
    answers.watermark = lambda rate: lambda pcm: pcm[1:]

    def asked(recording):
        ask(recording)
        if len(answers.engine.all) == 1:  # the second question comes when the first has failed
            again, answers.watermark = [LOUD] * 30 + [STILL] * 40 + [None], None
            step, talking.step = talking.step, lambda: failing(step, again)

    def failing(step, again):
        try:
            step()
        except ValueError:
            talking.step = step
            for piece in again:
                pieces.put(piece)
            raise

    ask, talking.ask = talking.ask, asked
    talk.live(talking, pieces)
    out, err = capsys.readouterr()
    assert err == "afn: error: the answer could not be said: a watermark of 100 samples gave [99]\n"
    assert json.loads(out)["finish"] == "end"
    assert [message["role"] for message in talking.messages] == ["user", "assistant"]
    assert (answers.engine.streams, talking.conversation.engine.scheduler.running()) == ([], 0)


def test_what_the_context_has_no_room_for_is_forgotten(talking):
    context = talking.conversation.engine.model.config.text.max_positions
    count = round(0.4 * context / 25 * 16_000)  # two such questions fit, three do not
    noise = np.random.default_rng(0).standard_normal(count).astype(np.float32) * 0.1
    for turns in (2, 4, 2):
        talking.ask({"type": "audio", "audio": noise})
        talking.interrupt()
        assert len(talking.messages) == turns
    with pytest.raises(ValueError, match="context"):
        talking.ask({"type": "audio", "audio": np.tile(noise, 3)})
    assert not talking.busy


class SoundDevice:
    """Stands in for the package: a microphone that has heard a question, and a loudspeaker that counts."""

    def __init__(self):
        self.played, self.rates = bytearray(), {}

    @contextmanager
    def RawInputStream(self, *, samplerate, callback, **_):
        self.rates["in"] = samplerate
        for piece in [LOUD] * 30 + [STILL] * 40:
            callback(piece.tobytes(), len(piece), None, None)
        yield

    @contextmanager
    def RawOutputStream(self, *, samplerate, callback, **_):
        self.rates["out"], over = samplerate, threading.Event()

        def play():
            out = bytearray(512)
            while not over.wait(0.001):
                callback(memoryview(out), 128, None, None)
                self.played += out

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def test_a_microphone_and_a_loudspeaker(run, monkeypatch):
    package, told = SoundDevice(), talk.Talking._told

    def interrupted(talking):
        told(talking)
        while talking.out.playing:
            pass
        raise KeyboardInterrupt  # as somebody ends it

    monkeypatch.setitem(sys.modules, "sounddevice", package)
    monkeypatch.setattr(sound, "find_spec", lambda name: name)
    monkeypatch.setattr(talk.Talking, "_told", interrupted)
    code, out, _ = run("--json", *FEW)
    row = json.loads(out)
    assert (code, package.rates) == (0, {"in": 16_000, "out": RATE})
    played = np.frombuffer(bytes(package.played), dtype=np.float32)
    assert np.count_nonzero(played) <= row["speech"]["audio"] * RATE <= len(played)
    assert np.abs(played).max() > 0


def test_ctrl_c_is_not_talked_over(run, monkeypatch):
    step = talk.Talking.step

    def interrupted(talking):
        step(talking)
        if talking.answer.times.chunks == 2:
            talking.out.write(torch.zeros(RATE * 3600))  # an hour
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "sounddevice", SoundDevice())
    monkeypatch.setattr(sound, "find_spec", lambda name: name)
    monkeypatch.setattr(talk.Talking, "step", interrupted)
    code, out, _ = run("--json", *FEW)
    assert (code, json.loads(out)["finish"]) == (0, "closed")


def test_standard_input_as_it_comes(run, monkeypatch):
    pcm = np.concatenate([LOUD] * 30 + [STILL] * 40 + [LOUD] * 30).tobytes() + b"\0"  # half a sample is none
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm), isatty=lambda: False))
    code, out, _ = run("--stream", "-", "--out", "a.wav", "--json", *FEW)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["finish"] == "closed" for row in rows]) == (0, [True, False])  # the second question came at once
    assert soundfile.info("a.wav").frames == round(sum(row["speech"]["audio"] for row in rows) * RATE)


def test_a_pipe_may_part_samples():
    pcm, pieces = np.arange(1000, dtype=np.int16), queue.Queue()
    data = io.BytesIO(pcm.tobytes())
    sound._read(SimpleNamespace(read=lambda size: data.read(min(size, 7))), pieces)
    *found, last = pieces.queue
    assert last is None
    assert np.array_equal(np.concatenate(found), pcm)


SILENT = "silent.wav"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["q.wav", "--text", "-"], "recordings and --text: one of them"),
        (["--text", "x", "--stream", "-"], "--text and --stream: one of them"),
        (["--text", "x", "--prompt", "y"], "--prompt is of a question"),
        (["--text", " *...* "], "there is nothing to say in"),
        (["--text", ""], "there is nothing to say in"),
        (["--text", "x", "--speaker", SILENT], "--speaker and --consent go together"),
        (["--text", "x", "--consent", "Ann"], "--speaker and --consent go together"),
        (["--text", "x", "--speaker", SILENT, "--consent", " "], "--consent: who has agreed, and when, is expected"),
        (["--text", "x", "--speaker", SILENT, "--consent", "Ann"], "silent.wav: a speaker prompt that is silent"),
        (["--text", "x", "--out", "a.txt"], "--out a.txt: expected is a name that ends with one of .wav, .pcm"),
        (["--threshold", "2"], "--threshold 2: expected is 0 to 1"),
        (["--text", "x", "--device", "tape"], "PyTorch knows none of this name"),
        (["nothing.wav"], "nothing.wav"),
        (["--stream", "-"], "standard input is a terminal"),
    ],
)
def test_what_is_refused(run, monkeypatch, words, said):
    soundfile.write(SILENT, np.zeros(32_000), 16_000)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    code, out, err = run(*words, *([] if "--out" in words else ["--out", "a.wav"]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not Path("a.wav").exists()


def test_what_is_not_there(run, monkeypatch):
    monkeypatch.setattr(sound, "find_spec", lambda name: None)
    assert "pip install sounddevice; else name recordings" in run("--text", "A dog.")[2]
    assert "--model DIR names a folder that has a tokenizer" in run("--text", "A dog.", "--out", "a.wav", model=None)[2]
    monkeypatch.delenv("AFN_MODEL", raising=False)
    assert "required: --model" in run("--out", "a.wav", model=None)[2]
