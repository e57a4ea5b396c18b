"""What a transcript's objects are made of: segments with their tokens, silence, repetition, speakers."""

import zlib

import pytest
import torch

from afn_model.infer.text_stream import TextStream
from afn_model.serve.transcript_formats import (
    Spoken,
    Transcript,
    compression_ratio,
    letter,
    silent_share,
    speaker_rows,
    to_diarized_json,
    to_json,
    to_verbose_json,
    token_places,
    usage_of,
)
from tests.tiny import processor


@pytest.fixture(scope="module")
def some():
    return processor()


def spoken(some, text, start=0.0, end=6.0, logprob=-0.5):
    ids = some.tokenizer.encode(text, add_special_tokens=False).ids
    return Spoken(start, end, text, ids, [logprob] * len(ids), "stop", 40, 30)


def said(some, *pieces, dtype=torch.float32):
    return Transcript("transcribe", "english", 0.0, torch.zeros(96_000 * len(pieces), dtype=dtype), pieces, some)


def test_where_tokens_begin(some):
    text = "A dog déjà 你好 barks."
    tokens = some.tokenizer.encode(text, add_special_tokens=False).ids
    places = token_places(tokens, some)
    pieces = []
    stream = TextStream(some.decode, pieces.append)
    for token, place in zip(tokens, places, strict=True):
        assert place == len("".join(pieces))
        stream(token)
    assert "".join(pieces) == text


def test_every_token_belongs_to_one_segment(some):
    first = spoken(some, "So. [1.5] A dog barks. [3.0] 你好!", logprob=-0.5)
    second = spoken(some, "One two three. Which is louder?", 6.0, 12.0, logprob=-1.5)
    found = to_verbose_json(said(some, first, second))
    assert [token for row in found["segments"] for token in row["tokens"]] == first.tokens + second.tokens
    assert [row["id"] for row in found["segments"]] == [0, 1, 2, 3, 4]
    assert [row["avg_logprob"] for row in found["segments"]] == [-0.5] * 3 + [-1.5] * 2
    assert [row["seek"] for row in found["segments"]] == [0] * 3 + [600] * 2
    assert found["text"] == "So. A dog barks. 你好!\nOne two three. Which is louder?"
    assert found["afn"]["times"] == "model, estimated"
    assert [row.get("model_times") for row in found["afn"]["pieces"]] == [None, "none"]
    assert found["segments"][-1]["end"] == found["duration"] == 12.0


def test_times_end_with_the_recording(some):
    samples = 96_009  # 6.0005625 s, which would be rounded up
    piece = spoken(some, "[0:00 - 0:06.4] A dog barks.", end=samples / 16_000)
    found = to_verbose_json(Transcript("transcribe", "x", 0.0, torch.zeros(samples), [piece], some))
    assert found["segments"][0]["end"] == found["duration"] == samples / 16_000


@pytest.mark.parametrize(("dtype", "full"), [(torch.float32, 1.0), (torch.int16, 32768.0)])
def test_silence(dtype, full):
    pcm = torch.zeros(32_000)
    pcm[:16_000] = 2e-3 * full  # -54 dB; the rest is below -60
    pcm[16_000:] = 5e-4 * full
    pcm = pcm.to(dtype)
    assert silent_share(pcm, 0.0, 1.0) == 0.0
    assert silent_share(pcm, 1.0, 2.0) == 1.0
    assert silent_share(pcm, 0.5, 2.0) == pytest.approx(2 / 3)
    assert silent_share(pcm, 1.0, 1.009) == silent_share(pcm, 3.0, 4.0) == 0.0


def test_repetition():
    assert compression_ratio("na " * 100) == 300 / len(zlib.compress(b"na " * 100)) > 2.4
    assert compression_ratio("déjà") == 6 / len(zlib.compress("déjà".encode()))


def test_speakers(some):
    text = "Well. [Speaker 2] Hello. Who is it? [Speaker 1] Me. [Speaker 27] Us."
    found = to_diarized_json(said(some, spoken(some, text), spoken(some, "And me.", 6.0, 12.0)))
    assert found["text"] == "A: Well.\nB: Hello. Who is it?\nA: Me.\nSpeaker 27: Us.\nA: And me."
    assert [row["id"] for row in found["segments"]] == [f"seg_{number}" for number in range(5)]
    assert [letter(number) for number in (1, 26, 27, 0)] == ["A", "Z", "Speaker 27", "Speaker 0"]
    # Who is not named is who spoke before.
    timed = spoken(some, "[Speaker 2] [0:00] Hello. [0:02] Who is it?")
    assert [row["speaker"] for row in speaker_rows(said(some, timed), timed)] == ["B", "B"]
    # A label that the model has timed by itself, without words, is nobody's turn.
    timed = spoken(some, "[Speaker 1] [0:00 - 0:02] Hello. [Speaker 2] [0:02 - 0:03]")
    assert [row["text"] for row in speaker_rows(said(some, timed), timed)] == ["Hello."]


def test_what_it_took(some):
    pieces = [spoken(some, "A dog barks."), spoken(some, "", 6.0, 12.0)]
    tokens = len(pieces[0].tokens)
    assert usage_of(pieces) == {
        "type": "tokens",
        "input_tokens": 80,
        "output_tokens": tokens,
        "total_tokens": 80 + tokens,
        "input_token_details": {"audio_tokens": 60, "text_tokens": 20},
    }
    found = to_json(said(some, *pieces), logprobs=True)
    assert (found["text"], len(found["logprobs"])) == ("A dog barks.", tokens)
    assert "logprobs" not in to_json(said(some, *pieces))
