import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from afn_model.config import TextConfig
from afn_model.speech.config import TalkerConfig, voice_preset
from afn_model.speech.mixture import code_sums
from afn_model.speech.talker import PAD, Talker, TalkerBatch, TalkerLoss, TalkerSample
from afn_model.weights.checkpoint import SkipInit
from tests.model.speech.tiny import CODEC, tiny_talker


def books() -> Tensor:
    return torch.randn(CODEC.levels, CODEC.codes, CODEC.latent, generator=torch.Generator().manual_seed(1))


def talker(**changes) -> Talker:
    torch.manual_seed(0)
    return Talker(tiny_talker(**changes), CODEC)


def sample(tokens: int, frames: int, prompt: int) -> TalkerSample:
    generator = torch.Generator().manual_seed(frames)
    ids = torch.randint(50, (tokens,), generator=generator)
    codes = torch.randint(CODEC.codes, (frames + prompt, CODEC.levels), generator=generator)
    return TalkerSample(ids, codes[:frames], codes[frames:] if prompt else None)


SAMPLES = [sample(2, 5, 0), sample(4, 9, 3), sample(1, 2, 6)]


@pytest.mark.parametrize("interleaved", [True, False])
def test_packed_loss_is_the_mean_of_the_samples(interleaved):
    model, total = talker(interleaved=interleaved), sum(len(one.codes) for one in SAMPLES)

    def loss(*places: int) -> TalkerLoss:
        generators = [torch.Generator().manual_seed(place) for place in places]
        batch = TalkerBatch.pack([SAMPLES[place] for place in places])
        return model.loss(batch, total, books(), generators=generators, noise=0.3, dropout=0.3, draws=2)

    packed, alone = loss(0, 1, 2), [loss(place) for place in range(3)]
    for part in range(4):
        assert torch.allclose(packed[part], torch.stack([one[part] for one in alone]).sum(), rtol=1e-5)
    assert torch.allclose(packed.loss, packed.frames + packed.end + packed.first)
    assert packed.end > 0


def test_the_first_level_is_one_choice_of_its_codes():
    """Told nothing, it costs log codes; its weight scales it, and nothing else."""
    model, batch = talker(), TalkerBatch.pack(SAMPLES)
    with torch.no_grad():
        model.first_head.weight.zero_()
        model.first_head.bias.zero_()
        once, half = (
            model.loss(batch, 16, books(), generator=torch.Generator().manual_seed(0), first=weight)
            for weight in (1.0, 0.5)
        )
    assert float(once.first) == pytest.approx(math.log(CODEC.codes), rel=1e-5)
    assert float(half.first) == pytest.approx(float(once.first) / 2)
    assert (half.frames, half.end) == (once.frames, once.end)


@pytest.mark.parametrize("interleaved", [True, False])
def test_gradients_reach_every_parameter(interleaved):
    model = talker(interleaved=interleaved)
    model.loss(TalkerBatch.pack(SAMPLES), 16, books(), noise=0.1, dropout=0.2, draws=8).loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not without


def test_what_is_drawn_comes_from_the_generator_alone():
    model, batch = talker(), TalkerBatch.pack(SAMPLES)

    def loss(seed: int) -> Tensor:
        torch.manual_seed(seed)
        options = {"noise": 0.3, "dropout": 0.5, "draws": 2}
        return model.loss(batch, 16, books(), generator=torch.Generator().manual_seed(2), **options).loss

    assert torch.equal(loss(0), loss(1))


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_frame_depends_on_no_later_text_or_frame(interleaved):
    model, one = talker(interleaved=interleaved), sample(6, 12, 4)
    batch = TalkerBatch.pack([one])
    before, prompts = code_sums(batch.codes, books()).roll(1, 0), code_sums(batch.prompts, books())
    whole = model.hidden(batch, before, prompts)
    for step in range(12):
        tokens, frames = batch.tokens.clone(), before.clone()
        tokens[step + 1 :] = torch.where(tokens[step + 1 :] == PAD, 7, PAD)
        frames[step + 1 :] += 3
        other = model.hidden(replace(batch, tokens=tokens), frames, prompts)
        assert torch.allclose(other[: step + 1], whole[: step + 1], atol=1e-5)
        if step < 11:
            assert (other[step + 1] - whole[step + 1]).abs().max() > 1e-3


def test_a_frame_depends_on_its_own_text_the_frame_before_and_the_prompt():
    model, batch = talker(), TalkerBatch.pack([sample(3, 5, 4)])
    before, prompts = code_sums(batch.codes, books()).roll(1, 0), code_sums(batch.prompts, books())
    whole = model.hidden(batch, before, prompts)
    tokens, frames = batch.tokens.clone(), before.clone()
    tokens[2], frames[2] = (tokens[2] + 1) % 50, frames[2] + 1
    for changed in (
        model.hidden(replace(batch, tokens=tokens), before, prompts),
        model.hidden(batch, frames, prompts),
        model.hidden(batch, before, prompts.flip(0)),
    ):
        assert (changed[2] - whole[2]).abs().max() > 1e-3
    frames = before.clone()
    frames[0] += 100  # a learnt start stands in its place
    assert torch.equal(model.hidden(batch, frames, prompts), whole)


def test_samples_without_text_or_without_room_for_it_are_refused():
    codes = torch.zeros(3, CODEC.levels, dtype=torch.long)
    with pytest.raises(ValueError, match="a sample without text"):
        TalkerSample(torch.zeros(0, dtype=torch.long), codes)
    with pytest.raises(ValueError, match="3 audio frames for 3 text tokens"):
        TalkerSample(torch.zeros(3, dtype=torch.long), codes)
    with pytest.raises(ValueError, match="a batch without samples"):
        TalkerBatch.pack([])


def test_the_full_size_is_that_of_the_paper():
    preset = voice_preset("af-next-talker")
    assert preset.talker is not None
    with torch.device("meta"), SkipInit():
        model = Talker(preset.talker, preset.codec)
    count = sum(weight.numel() for weight in model.parameters())
    assert abs(count / 644e6 - 1) < 0.01


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"components": 0}, "components must be a whole number from 1"),
        ({"head_layers": True}, "head_layers"),
        ({"piece": 240}, "a piece of 240 tokens needs more than 240 frames"),
        ({"floor": 0.0}, "floor must be a finite number above 0"),
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"noise": float("nan")}, "noise must be a finite number"),
        ({"schedule": "linear"}, "expected 'cosine' or 'even'"),
        ({"interleaved": 1}, "interleaved must be true or false"),
        ({"text": TextConfig(50, 30, 1, 4, 1, 8)}, "an even head dimension"),
    ],
)
def test_fields_out_of_range_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(TalkerConfig(), **changes)
