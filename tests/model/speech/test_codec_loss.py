"""Losses: 0 for what is the same, finite gradients for all sounds, the formulas of the adversarial terms."""

import pytest
import torch

from afn_model.speech.codec_loss import FLOOR, CodecLosses, CodecLossSettings, LogMel, mel_filters
from tests.model.speech.small import sound

SETTINGS = CodecLossSettings(spectrum=1.0, windows=(256, 64, 32), bands=(40, 20, 5))


def test_filters_cover_every_band_with_weight_one():
    for window, bands in ((2048, 320), (512, 80), (32, 5), (64, 40)):
        filters = mel_filters(16_000, window, bands)
        assert torch.allclose(filters.sum(0), torch.ones(bands))
        assert (filters >= 0).all()
    peaks = mel_filters(16_000, 2048, 80).argmax(0)
    assert (peaks.diff() > 0).all()


def test_a_full_scale_sine_has_half_in_its_band_and_silence_the_floor():
    measure = LogMel(8000, 256, 10)
    sine = torch.sin(torch.arange(2000) * 2 * torch.pi * 1000 / 8000)[None]
    _, bins = measure(sine)
    assert torch.allclose(bins[0, 10].abs().max(), torch.tensor(0.5), atol=1e-3)
    assert torch.allclose(measure(torch.zeros(1, 500))[0].exp(), torch.tensor(FLOOR))


def test_the_same_sound_costs_nothing_and_another_something():
    losses, pcm = CodecLosses(SETTINGS, 8000), sound(1000)
    assert all(float(term) == 0 for term in losses.reconstruction(pcm, pcm).values())
    quieter = losses.reconstruction(pcm, 0.5 * pcm)
    assert torch.allclose(quieter["mel"], torch.tensor(15 * 0.6931), atol=1e-2)  # ln 2 in every band
    assert float(losses.reconstruction(pcm, sound(1000, seed=2))["spectrum"]) > 0
    assert set(CodecLosses(CodecLossSettings(), 8000).reconstruction(pcm, pcm)) == {"mel"}


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e5])
@pytest.mark.parametrize("n", [1, 333])
def test_gradients_are_finite_for_silence_one_sample_and_very_loud_sound(scale, n):
    losses = CodecLosses(SETTINGS, 8000)
    made = (scale * sound(n, seed=2)).requires_grad_()
    for pcm in (sound(n), torch.zeros(1, n)):
        made.grad = None
        sum(losses.reconstruction(pcm, made).values()).backward()
        assert made.grad.isfinite().all()


def layers(*values: float) -> list[list[torch.Tensor]]:
    return [[torch.full((1, 3), 2.0 * v), torch.full((1, 2), v)] for v in values]


@pytest.mark.parametrize(
    ("kind", "judged", "fooled"),
    # hinge: relu(1 - real) + relu(1 + fake), and -fake; least squares: (1 - real)^2 + fake^2, and (1 - fake)^2
    [
        ("hinge", ((1 - 0.5) + (1 + 0.25) + 0 + (1 + 2)) / 2, -(0.25 + 2) / 2),
        ("least squares", (0.25 + 0.0625 + 1 + 4) / 2, (0.5625 + 1) / 2),
    ],
)
def test_adversarial_terms_are_their_formulas(kind, judged, fooled):
    losses = CodecLosses(CodecLossSettings(kind=kind, adversarial=3.0, feature=5.0), 8000)
    real, fake = layers(0.5, 2.0), layers(0.25, 2.0)
    assert torch.allclose(losses.discriminator(real, fake), torch.tensor(judged))
    terms = losses.generator(real, fake)
    assert torch.allclose(terms["adversarial"], torch.tensor(3 * fooled))
    assert torch.allclose(terms["feature"], torch.tensor(5 * (0.5 / 1.0 + 0) / 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mel": -1}, "codec loss: mel must not be negative, got -1"),
        ({"feature": float("nan")}, "codec loss: feature must be a finite number, got nan"),
        ({"kind": "wgan"}, "codec loss: kind 'wgan': expected 'hinge' or 'least squares'"),
        ({"bands": (5,)}, "codec loss: 7 windows but 1 numbers of bands"),
        ({"windows": (2,)}, r"codec loss: one of windows must be a whole number from 4 to \d+, got 2"),
        ({"bands": 80}, "codec loss: bands must be a list of whole numbers, got 80"),
    ],
)
def test_settings_that_are_none_are_refused(changes, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        CodecLossSettings(**changes)
