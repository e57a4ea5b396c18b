"""What is kept of uploads: each client's own, until there is no room, and nothing of others for it."""

import asyncio

import pytest
import torch

from afn_model.audio.digests import window_digest, windows_of
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.serve.recording import Recording
from afn_model.serve.uploads import EARLY, Uploads, begun, compute_ahead
from tests.tiny import conversation, noise, tiny


def recording(id: str, samples: int = 1000) -> Recording:
    return Recording(id, torch.zeros(samples, dtype=torch.int16))


def test_what_is_used_least_goes_first():
    uploads = Uploads(6000)
    for id in "abc":
        uploads.add("me", recording(id))
    assert uploads.get("me", "a") is not None
    uploads.add("me", recording("d"))
    assert [one.recording.id for one in uploads.of("me")] == ["d", "a", "c"]
    assert uploads.bytes == 6000
    assert uploads.remove("me", "a")
    assert not uploads.remove("me", "a")
    assert uploads.bytes == 4000
    uploads.add("me", recording("d", 2000))
    assert uploads.bytes == 6000
    uploads.add("me", recording("huge", 90_000))
    assert [one.recording.id for one in uploads.of("me")] == ["huge"]


def test_nobody_reads_or_pushes_out_what_others_keep():
    uploads = Uploads(8000)
    uploads.add("one", recording("a"))
    for number in range(20):
        uploads.add("two", recording(f"b{number}"))
    assert uploads.get("two", "a") is None
    assert uploads.get("one", "a") is not None
    assert not uploads.remove("two", "a")
    assert len(uploads.of("two")) == 3
    assert uploads.bytes == 8000


def test_the_same_bytes_at_the_same_time_are_decoded_once():
    async def asked():
        uploads, made, go = Uploads(10_000), [], asyncio.Event()

        async def make():
            await go.wait()
            made.append(1)
            return uploads.add("me", recording("a"))

        first, second = (asyncio.create_task(uploads.made("me", "a", make)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        go.set()
        assert (await second).recording.id == "a"
        assert (await uploads.made("me", "a", make)) is await second
        assert made == [1]

        async def fails():
            raise ValueError("broken")

        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                await uploads.made("me", "b", fails)

    asyncio.run(asked())


@pytest.fixture(scope="module")
def pair():
    return tiny()


def heard(seconds: float) -> Recording:
    pcm = torch.as_tensor(noise(seconds)).float()
    return Recording("a", pcm, tuple(window_digest(window) for window in windows_of([pcm])))


def test_a_question_finds_what_was_computed_ahead_and_nothing_is_held_for_it(pair):
    model, processor = pair
    engine, of = Engine(model, processor, pages=100), heard(3.0)
    compute_ahead(engine, begun(processor, of), of)
    engine.run()
    encoded = engine.audio.windows_encoded
    params = SamplingParams(max_new_tokens=4, stop_token_ids=())
    (request,) = engine.add(processor(conversation("What is said?", of.pcm)), params, keys=[0])
    engine.run()
    assert (encoded, engine.audio.windows_encoded) == (1, 1)
    assert request.answers[0].sequence.reused >= 64
    assert not engine.early
    engine.audio.clear()  # which fails where windows are held
    fresh = Engine(model, processor, pages=100)
    (alone,) = fresh.add(processor(conversation("What is said?", of.pcm)), params, keys=[0])
    fresh.run()
    assert request.answers[0].tokens == alone.answers[0].tokens


def test_only_a_few_wait_to_be_computed_and_what_is_too_long_does_not(pair):
    model, processor = pair
    engine, of = Engine(model, processor, pages=100), heard(1.0)
    ids = begun(processor, of)
    for _ in range(EARLY + 3):
        compute_ahead(engine, ids, of)
    assert len(engine.early) == EARLY
    small = Engine(model, processor, pages=1)
    compute_ahead(small, begun(processor, heard(3.0)), heard(3.0))
    compute_ahead(small, ids + [1] * model.config.text.max_positions, of)
    assert not small.early
    small.audio.clear()
