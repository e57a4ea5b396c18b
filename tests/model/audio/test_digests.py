"""A recording that is kept is hashed once, and goes through processor and engine without a copy or another hash.

``window_digest`` and ``windows_of``: tests/model/infer/test_audio_stream.py.
"""

import pytest
import torch

from afn_model.audio import digests as module
from afn_model.audio.digests import DecodedRecording, window_digest, windows_of
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.batch import join
from afn_model.prompt.conversation import read_conversation
from tests.tiny import conversation, noise, processor, tiny

PARAMS = SamplingParams(max_new_tokens=5, stop_token_ids=(), logprobs=0)


def recording(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(noise(seconds, seed)).float()


@pytest.fixture
def hashed(monkeypatch):
    """Lengths of the windows that are hashed."""
    found, digest = [], module.window_digest
    monkeypatch.setattr(module, "window_digest", lambda pcm: found.append(len(pcm)) or digest(pcm))
    return found


def test_a_kept_recording_is_hashed_once_and_answered_alike(hashed):
    model, of = tiny()
    pcm, other = recording(31.0), recording(0.5, 1)
    kept, engine, said = DecodedRecording(pcm), Engine(model, pages=60), []
    for question in ("What is said?", "And then?"):
        batch = of(conversation(question, kept, other.numpy()))
        assert batch.digests == [*map(window_digest, windows_of([pcm])), None]
        (request,) = engine.add(batch, PARAMS)
        engine.run()
        said.append(request.answers[0])
    assert hashed == [480_000, 16_000, 8000, 8000]
    assert engine.audio.windows_encoded == 3
    plain = Engine(model, pages=60)
    for question, expected in zip(("What is said?", "And then?"), said, strict=True):
        (request,) = plain.add(of(conversation(question, pcm.numpy(), other.numpy())), PARAMS)
        plain.run()
        assert (request.answers[0].tokens, request.answers[0].logprobs) == (expected.tokens, expected.logprobs)


def test_digests_that_are_known_are_not_made(hashed):
    pcm = recording(61.0)
    known = [b"%d" % number * 32 for number in range(3)]
    kept = DecodedRecording(pcm, known)
    batch = processor().pack([processor().prepare(read(kept))], ragged=True)
    assert batch.digests == known
    assert not hashed
    assert batch.pcm is not None
    assert batch.pcm.data_ptr() == pcm.data_ptr(), "the samples were copied"


def read(*audios):
    return read_conversation(conversation("What is said?", *audios))


@pytest.mark.parametrize("part", ["start", "dtype", "max_seconds"])
def test_a_part_of_a_recording_has_windows_of_its_own(part):
    """Or a copy in another dtype: the digests of the whole are not theirs."""
    pcm = recording(2.0)
    options = {"pcm_dtype": torch.int16} if part == "dtype" else {"max_seconds": 1.5} if part == "max_seconds" else {}
    asked = conversation("What is said?", DecodedRecording(pcm))
    if part == "start":
        asked[0]["content"][0]["start"] = 0.5
    of = processor(**options)
    if part == "max_seconds":
        with pytest.warns(UserWarning, match="longer than"):
            batch = of(asked)
    else:
        batch = of(asked)
    assert batch.digests is None
    assert batch.samples.tolist() == [32_000 if part == "dtype" else 24_000]


def test_nothing_is_hashed_to_train(hashed):
    batch = processor()(conversation("?", DecodedRecording(recording(1.0)), answer="one"), training=True)
    assert batch.digests is None
    assert not hashed


def test_batches_are_joined_and_moved_with_their_digests():
    of = processor()
    known, plain = (of(conversation("?", source)) for source in (DecodedRecording(recording(1.0)), noise(1.0, 1)))
    assert known.digests is not None
    assert join(known, plain).digests == [*known.digests, None]
    assert join(plain, known).digests == [None, *known.digests]
    assert join(plain, plain).digests is None
    assert known.to("cpu").digests == known.digests


@pytest.mark.parametrize(
    ("pcm", "digests", "says"),
    [
        (torch.zeros(2, 8), None, r"must be \[n\] float32 or int16, got torch.float32 \[2, 8\]"),
        (torch.zeros(8, dtype=torch.float64), None, "float32 or int16, got torch.float64"),
        (torch.zeros(16_000), [b"a", b"b"], "2 digests for the 1 audio windows"),
    ],
)
def test_what_is_no_recording(pcm, digests, says):
    with pytest.raises(ValueError, match=says):
        DecodedRecording(pcm, digests)
