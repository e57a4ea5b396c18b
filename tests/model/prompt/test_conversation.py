"""Several audios in a conversation, from recordings to embeddings."""

import pytest
import torch

from afn_model.config import RoteConfig
from tests.model.tiny_model import noise, tiny


@pytest.fixture(scope="module", params=["checkpoint", "paper", "none"])
def pair(request):
    return tiny(rote=RoteConfig(request.param))


def audio(pcm) -> dict:
    return {"type": "audio", "audio": pcm, "sampling_rate": 16_000}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@torch.inference_mode()
def embeddings(pair, *conversations) -> list[torch.Tensor]:
    """The audio embeddings of every clip, in order, as they are put into the language model's input."""
    model, processor = pair
    batch = processor(list(conversations))
    features, tokens = model.encode_batch(batch)
    projected = model.project(features, tokens, batch.windows_per_audio.tolist())
    spliced = model.embed(batch.input_ids, projected)[batch.input_ids == processor.sound_id]
    assert torch.equal(spliced, projected)
    per_audio = torch.tensor(tokens).split(batch.windows_per_audio.tolist())
    return list(spliced.split([int(windows.sum()) for windows in per_audio]))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


CLIPS = {"short": noise(0.8, 1), "longer": noise(3.3, 2), "two windows": noise(31.0, 3)}


@pytest.mark.parametrize("second", CLIPS)
@pytest.mark.parametrize("first", CLIPS)
def test_two_audios_in_one_conversation_are_each_alone(pair, first, second):
    a, b = CLIPS[first], CLIPS[second]
    together = [{"role": "user", "content": [audio(a), text("Before that:"), audio(b), text("Which is louder?")]}]
    alone = [[{"role": "user", "content": [audio(clip), text("What is said?")]}] for clip in (a, b)]
    expected = [embeddings(pair, one)[0] for one in alone]
    assert error(expected[0][:20], expected[1][:20]) > 0.05 or first == second
    for found in (embeddings(pair, *together[:1]), embeddings(pair, *alone)):
        assert len(found) == 2
        # Other matrix shapes add in another order: float32 rounding, nothing more.
        assert max(error(*one) for one in zip(found, expected, strict=True)) <= 1e-5


def test_audios_spread_over_turns_and_conversations(pair):
    a, b, c = CLIPS.values()
    talk = [
        {"role": "user", "content": [audio(a), text("What is said?")]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [text("And here:"), audio(c), audio(a), text("?")]},
    ]
    other = [{"role": "user", "content": [audio(b), text("What is said?")]}]
    expected = [embeddings(pair, [{"role": "user", "content": [audio(clip)]}])[0] for clip in (a, c, a, b)]
    found = embeddings(pair, talk, other)
    assert len(found) == 4
    assert max(error(*one) for one in zip(found, expected, strict=True)) <= 1e-5


def test_a_recording_mentioned_twice_is_heard_twice(pair):
    model, processor = pair
    clip = CLIPS["short"]
    batch = processor([{"role": "user", "content": "<sound-1> or <sound-1>?"}], audios=[clip])
    assert len(batch.windows_per_audio) == 2
    with torch.inference_mode():
        features, tokens = model.encode_batch(batch)
        first, second = model.project(features, tokens, [1, 1]).chunk(2)
    assert error(first, second) <= 1e-5
    assert len(model.generate(batch, 3, stop_token_ids=())[0]) == 3
