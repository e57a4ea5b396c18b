from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from afn_model.speech.engine import EngineFull, SpeechEngine, SpokenStream
from afn_model.speech.speaker import SpeakerPrompt
from afn_model.speech.talker import PAD, TalkerBatch
from tests.model.speech.tiny import CODEC, tiny_voice

NEVER, AT_ONCE = -9.0, 9.0  # logits of the end


def speaker(frames: int) -> SpeakerPrompt:
    codes = torch.randint(CODEC.codes, (frames, CODEC.levels), generator=torch.Generator().manual_seed(frames))
    return SpeakerPrompt(codes, "a test's own numbers")


def run(engine: SpeechEngine, stream: SpokenStream, *, steps: int = 1000) -> Tensor:
    """What a stream says until it is done, or waits, or for some steps."""
    parts, made = [torch.zeros(0)], 0
    while not (stream.done or stream.waiting) and made < steps:
        parts += [sound for one, sound in engine.step() if one is stream]
        made += 1
    return torch.cat(parts)


def spoken(engine: SpeechEngine, ids: Iterable[int], *, prompt: int = 5, seed: int | None = None) -> Tensor:
    stream = engine.open(speaker(prompt), seed=seed)
    stream.say(list(ids))
    stream.end()
    return run(engine, stream)


def watch(monkeypatch: pytest.MonkeyPatch, engine: SpeechEngine) -> list[Tensor]:
    """The frames that an engine says, as they come."""
    frames, decode = list[Tensor](), engine._decode
    monkeypatch.setattr(engine, "_decode", lambda stream, frame: frames.append(frame) or decode(stream, frame))
    return frames


@pytest.mark.parametrize("interleaved", [True, False])
def test_streaming_says_what_recomputation_over_the_whole_says(monkeypatch, interleaved):
    voice = tiny_voice(NEVER, interleaved=interleaved)
    engine = SpeechEngine(voice, streams=1, longest=60)
    frames, ids, prompt = watch(monkeypatch, engine), [3, 1, 4, 1, 5, 9], speaker(7)
    sound = spoken(engine, ids, prompt=7, seed=4)
    sums, talker, books = torch.stack(frames), voice.talker, voice.codec.quantizer.codebooks
    assert talker is not None
    tokens = torch.tensor(ids + [PAD] * 54)
    batch = TalkerBatch(tokens, torch.empty(60, 0), torch.empty(7, 0), (60,), (7,))
    with torch.no_grad():
        hidden = talker.hidden(batch, sums.roll(1, 0), voice.codec.embed(prompt.codes))
        generator = torch.Generator().manual_seed(4)
        draws = [(torch.rand(3, generator=generator), torch.randn(3, CODEC.latent, generator=generator)) for _ in sums]
        uniform, normal = (torch.stack(x) for x in zip(*draws, strict=True))
        assert torch.allclose(talker.head.fill(hidden, books, uniform, normal)[1], sums, atol=1e-5)
        assert torch.allclose(sound, voice.codec.decode(sums[None])[0], atol=1e-5)


def test_a_stream_says_the_same_alone_and_beside_streams_that_come_and_go():
    voice = tiny_voice(NEVER)
    alone = spoken(SpeechEngine(voice, streams=1, longest=40), range(9), seed=3)
    engine = SpeechEngine(voice, streams=3, longest=40)
    first = engine.open(speaker(8), seed=11)
    first.say([7, 7, 7])
    run(engine, first, steps=2)
    stream = engine.open(speaker(5), seed=3)
    stream.say(range(9))
    stream.end()
    parts, others = list[Tensor](), [first]
    for step in range(100):
        parts += [sound for one, sound in engine.step() if one is stream]
        if step % 4 == 1:
            others.append(engine.open(None if step % 8 == 1 else speaker(3), seed=step))
            others[-1].say(range(step))
        if step % 4 == 3:
            others.pop(0).close()
        if stream.done:
            break
    assert torch.equal(torch.cat(parts), alone)
    assert stream.reason == "length"
    for other in others:
        other.close()
    assert not engine.pool.used
    engine.pool.check([])


def test_a_stream_waits_for_text_and_goes_on_as_if_it_had_come_at_once():
    engine = SpeechEngine(tiny_voice(AT_ONCE), streams=2, longest=40)
    whole = spoken(engine, [5, 6, 7, 8])
    stream = engine.open(speaker(5))
    assert stream.waiting
    assert not engine.step()
    stream.say([5, 6])
    parts = [run(engine, stream)]
    assert (stream.frames, stream.waiting, stream.done) == (2, True, False)
    assert not engine.step()
    stream.say([7])
    stream.say([8])
    stream.end()
    parts.append(run(engine, stream))
    assert torch.equal(torch.cat(parts), whole)
    assert (stream.frames, stream.reason, engine.pool.used) == (5, "end", 0)
    assert len(whole) == 5 * CODEC.frame


def test_the_end_is_asked_only_where_the_text_is_over():
    engine = SpeechEngine(tiny_voice(AT_ONCE), streams=1, longest=40)
    assert len(spoken(engine, range(20))) == 21 * CODEC.frame


@pytest.mark.parametrize(("finish", "reason"), [(SpokenStream.end, "end"), (SpokenStream.close, "closed")])
def test_a_stream_without_text_is_over_without_a_sound(finish: Callable[[SpokenStream], None], reason: str):
    engine = SpeechEngine(tiny_voice(), streams=1)
    stream = engine.open()
    finish(stream)
    assert not engine.step()
    assert (stream.done, stream.reason) == (True, reason)
    engine.open()  # its place is free


@pytest.mark.parametrize("steps", [0, 4, 11])
def test_closing_frees_everything_at_once(steps):
    engine = SpeechEngine(tiny_voice(NEVER), streams=1, longest=14)
    stream = engine.open(speaker(8))
    stream.say(range(10))
    run(engine, stream, steps=steps)
    stream.close()
    stream.close()
    assert (stream.reason, engine.pool.used, engine.step()) == ("closed", 0, [])
    with pytest.raises(ValueError, match="no more text: it is done"):
        stream.say([1])
    assert torch.equal(spoken(engine, range(9)), spoken(SpeechEngine(engine.voice, streams=1, longest=14), range(9)))


def test_long_text_is_said_in_pieces_within_the_pages_of_one():
    engine = SpeechEngine(tiny_voice(AT_ONCE), streams=1, longest=40, piece=12, breaks=[13])
    text = [1, 13, *[2] * 5, 13, *[3] * 30]  # the second break is in the second half of a piece, the first is not
    stream, most, sounds = engine.open(speaker(8)), 0, list[Tensor]()
    stream.say(text * 5)
    stream.end()
    pieces = []
    while not stream.done:
        sounds += [sound for _, sound in engine.step()]
        most = max(most, engine.pool.used)
        pieces.append(stream._piece)
    assert most <= engine.pool.pages == 2
    assert len({id(piece) for piece in pieces if piece is not None}) > 12
    assert stream.frames == len(text) * 5 + sum(piece is None for piece in pieces)  # one more for each piece's end
    assert pieces[:9].index(None) == 8
    assert sum(map(len, sounds)) == stream.frames * CODEC.frame
    assert (stream.reason, engine.pool.used) == ("end", 0)


def test_what_is_said_depends_on_seed_speaker_and_text(monkeypatch):
    voice = tiny_voice(NEVER)
    engine = SpeechEngine(voice, streams=1, longest=20)
    base = spoken(engine, range(5), seed=0)
    assert torch.equal(spoken(engine, range(5)), base)
    others = [spoken(engine, range(5), seed=1), spoken(engine, range(5), prompt=6), spoken(engine, range(1, 6))]
    assert not any(torch.equal(other, base) for other in others)
    monkeypatch.setattr(voice, "default_voice", speaker(5).codes)
    stream = engine.open()
    stream.say(range(5))
    stream.end()
    assert torch.equal(run(engine, stream), base)


def test_bad_calls_are_refused_in_one_line():
    voice = tiny_voice()
    engine = SpeechEngine(voice, streams=1)
    with pytest.raises(ValueError, match="4 levels of 9 codes"):
        engine.open(SpeakerPrompt(torch.full((3, 4), 9), "a test's own numbers"))
    stream = engine.open()
    with pytest.raises(EngineFull, match="1 streams are speaking"):
        engine.open()
    with pytest.raises(ValueError, match="a token's id must be a whole number from 0 to 49, got 50"):
        stream.say([1, 50])
    assert stream.waiting  # nothing of it was taken
    stream.end()
    with pytest.raises(ValueError, match="no more text: it has ended"):
        stream.say([1])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"longest": 1000}, "2008 positions with the prompt, and the talker has 512"),
        ({"temperature": -1}, "must be 0 or more"),
        ({"streams": 0}, "streams must be a whole number from 1"),
        ({"longest": 20, "piece": 20}, "piece must be a whole number from 1 to 19"),
    ]
    for options, said in refused:
        with pytest.raises(ValueError, match=said):
            SpeechEngine(voice, **options)
    voice.talker = None
    with pytest.raises(ValueError, match="the voice has no talker"):
        SpeechEngine(voice)
