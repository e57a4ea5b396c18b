"""The forms of a conversation and of its recordings, and several audios from recordings to embeddings."""

import copy
import io

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.recording import Audio
from afn_model.config import RoteConfig
from afn_model.prompt.conversation import read_conversation
from tests.budget import assert_same_but_rounding, assert_within_budget
from tests.orders import in_orders
from tests.tiny import noise, tiny
from tests.tiny import processor as tiny_processor


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
    """The embeddings of every clip in a conversation of its own, in several orders of summation, then in float64."""
    conversations = {name: [{"role": "user", "content": [audio(clip)]}] for name, clip in CLIPS.items()}

    def alone(pair) -> dict[str, torch.Tensor]:
        return {name: embeddings(pair, one)[0] for name, one in conversations.items()}

    model, processor = pair
    return [*in_orders(lambda: alone(pair), 4), alone((copy.deepcopy(model).double(), processor))]


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
        # Other matrix shapes add in another order, or by another library: float32 rounding, nothing more.
        for one, *orders, exact in zip(found, *expected, strict=True):
            assert_within_budget(one, orders, exact)


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
    for one, *orders, exact in zip(found, *expected, strict=True):
        assert_within_budget(one, orders, exact)


def test_a_recording_mentioned_twice_is_heard_twice(pair):
    model, processor = pair
    clip = CLIPS["short"]
    batch = processor([{"role": "user", "content": "<sound-1> or <sound-1>?"}], audios=[clip])
    assert len(batch.windows_per_audio) == 2
    with torch.inference_mode():
        both = in_orders(lambda: model.project(*model.encode_batch(batch), [1, 1]).chunk(2))
    assert_same_but_rounding(both[0][0], [second for _, second in both])
    assert len(model.generate(batch, 3, stop_token_ids=())[0]) == 3


SAMPLES = noise(0.5, 1, rate=8000)


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 8000, format="WAV", subtype="DOUBLE")
    return file.getvalue()


FORMS = {
    "samples and rate": lambda: {"array": SAMPLES, "sampling_rate": 8000, "path": "gone.wav"},
    "a whole rate that is a float": lambda: {"array": SAMPLES, "sampling_rate": 8000.0},
    "a pair": lambda: (SAMPLES, 8000),
    "a pair of a list": lambda: (SAMPLES.tolist(), 8000),
    "a list and a rate": lambda: {"array": SAMPLES.tolist(), "sampling_rate": 8000},
    "bytes and path": lambda: {"bytes": wav(), "path": "gone.wav"},
    "a tensor": lambda: {"array": torch.from_numpy(SAMPLES), "sampling_rate": 8000},
    "an audio": lambda: Audio(SAMPLES, 8000),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_recording_are_heard_alike(form):
    processor = tiny_processor()
    expected = processor([{"role": "user", "content": [{"type": "audio", "audio": wav()}, text("What?")]}])
    source = FORMS[form]()
    part = {"type": "audio", "audio": source}
    written = [{"role": "user", "content": "<sound>What?"}]
    batches = [
        processor([{"role": "user", "content": [part, text("What?")]}]),
        processor(written, audios=[source]),
        processor(written, audios=source),
    ]
    if isinstance(source, dict):
        batches.append(processor([{"role": "user", "content": [{"type": "audio", **source}, text("What?")]}]))
    for batch in batches:
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert torch.equal(batch.pcm, expected.pcm)


def test_a_part_beside_a_recording_is_kept():
    part = {"type": "audio", "audio": {"array": SAMPLES, "sampling_rate": 8000}, "start": 0.1, "end": 0.3}
    (found,) = read_conversation([{"role": "user", "content": [part]}])[0].audios
    assert (found.sampling_rate, found.start, found.end) == (8000, 0.1, 0.3)
    found = read_conversation([{"role": "user", "content": "<sound>"}], [0.0, 0.5, 1])[0].audios[0]
    assert np.array_equal(found.source, [0.0, 0.5, 1.0])


NONE = [
    [["a", "b"]],
    [{"array": None}],
    [[None, 0.5]],
    [[[1, 2], [3]]],
    [([1j], 8000)],
    [{"bytes": "UklGRg=="}],
    [{"array": "a.wav"}],
    [{"audio": {"bytes": "UklGRg==", "path": "a.wav"}}],
]


@pytest.mark.parametrize("audios", NONE)
def test_recordings_that_are_none(audios):
    with pytest.raises(ValueError, match=r"must be|needs") as error:
        read_conversation([{"role": "user", "content": "<sound>"}], audios)
    assert "\n" not in str(error.value)


def test_half_a_character_is_refused_with_its_place():
    half = "\udce9"  # as Python reads a byte of Latin-1 from the command line
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": f"caf{half}"}]
    record = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": f"caf{half}"}]}
    parts = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": [text(f"caf{half}")]}]
    for conversation in (turns, record, parts):
        with pytest.raises(
            ValueError, match=r"^message 1 is not Unicode text: 'caf\\udce9' has half a character, at 3$"
        ):
            read_conversation(conversation)


@pytest.mark.parametrize("value", [torch.tensor(1.0), np.array(1.0), 3, None, "text"])
def test_what_is_no_conversation(value):
    with pytest.raises(ValueError, match="a conversation or a list of them is expected"):
        tiny_processor()(value)


@pytest.mark.parametrize("ids", [torch.tensor(1), np.array(1), 3])
def test_what_is_no_list_of_tokens(ids):
    with pytest.raises(ValueError, match="token ids must be a list"):
        tiny_processor().decode(ids)
