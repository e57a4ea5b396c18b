"""Several audios in a conversation, from recordings to embeddings."""

import pytest
import torch

from afn_model.config import RoteConfig
from tests.budget import assert_same_but_rounding
from tests.orders import in_orders
from tests.tiny import noise, tiny


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


CLIPS = {"short": noise(0.8, 1), "longer": noise(3.3, 2), "two windows": noise(31.0, 3)}


@pytest.fixture(scope="module")
def each_alone(pair) -> list[dict[str, torch.Tensor]]:
    """The embeddings of every clip in a conversation of its own, in several orders of summation."""
    conversations = {name: [{"role": "user", "content": [audio(clip)]}] for name, clip in CLIPS.items()}
    return in_orders(lambda: {name: embeddings(pair, one)[0] for name, one in conversations.items()}, 4)


@pytest.mark.parametrize("second", CLIPS)
@pytest.mark.parametrize("first", CLIPS)
def test_two_audios_in_one_conversation_are_each_alone(pair, each_alone, first, second):
    a, b = CLIPS[first], CLIPS[second]
    together = [{"role": "user", "content": [audio(a), text("Before that:"), audio(b), text("Which is louder?")]}]
    alone = [[{"role": "user", "content": [audio(clip), text("What is said?")]}] for clip in (a, b)]
    expected = [[one[first], one[second]] for one in each_alone]
    apart = (expected[0][0][:20] - expected[0][1][:20]).abs().max()
    assert apart > 0.05 * expected[0][1].abs().max() or first == second
    for found in (embeddings(pair, *together[:1]), embeddings(pair, *alone)):
        assert len(found) == 2
        # Other matrix shapes add in another order: float32 rounding, nothing more.
        assert_same_but_rounding(found, expected)


def test_audios_spread_over_turns_and_conversations(pair, each_alone):
    a, b, c = CLIPS.values()
    talk = [
        {"role": "user", "content": [audio(a), text("What is said?")]},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [text("And here:"), audio(c), audio(a), text("?")]},
    ]
    other = [{"role": "user", "content": [audio(b), text("What is said?")]}]
    expected = [[one[name] for name in ("short", "two windows", "short", "longer")] for one in each_alone]
    found = embeddings(pair, talk, other)
    assert len(found) == 4
    assert_same_but_rounding(found, expected)


def test_a_recording_mentioned_twice_is_heard_twice(pair):
    model, processor = pair
    clip = CLIPS["short"]
    batch = processor([{"role": "user", "content": "<sound-1> or <sound-1>?"}], audios=[clip])
    assert len(batch.windows_per_audio) == 2
    with torch.inference_mode():
        both = in_orders(lambda: model.project(*model.encode_batch(batch), [1, 1]).chunk(2))
    assert_same_but_rounding(both[0][0], [second for _, second in both])
    assert len(model.generate(batch, 3, stop_token_ids=())[0]) == 3
