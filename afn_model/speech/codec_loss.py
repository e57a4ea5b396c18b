"""What a codec is trained with: distances of spectra, and what discriminators say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afn_model.checks import is_listed, number, shown, whole
from afn_model.config import LARGEST
from afn_model.speech.quantizer import Quantized

FLOOR = 1e-4  # of a band's magnitude, where a full-scale sine has about 0.5: 74 dB below it is silence
Features = Sequence[Sequence[Tensor]]  # of each discriminator, of each of its layers; the last are its verdicts


@dataclass(frozen=True)
class CodecLossSettings:
    """Weights of the terms; 0 leaves one out. ValueError where one is no number from 0.

    Args:
        mel: L1 of log-mel spectra at every size of ``windows``, with ``bands`` bands each.
        spectrum: L1 of complex STFTs with magnitudes to the power 0.3, which phases count in.
        adversarial, feature: the discriminators' verdict, and L1 of their layers relative to those of the original.
        commitment, codebook: the quantiser's.
        kind: "hinge" or "least squares".
    """

    mel: float = 15.0
    spectrum: float = 0.0
    adversarial: float = 1.0
    feature: float = 2.0
    commitment: float = 0.25
    codebook: float = 1.0
    windows: tuple[int, ...] = (2048, 1024, 512, 256, 128, 64, 32)
    bands: tuple[int, ...] = (320, 160, 80, 40, 20, 10, 5)
    kind: str = "hinge"

    def __post_init__(self):
        for name in ("mel", "spectrum", "adversarial", "feature", "commitment", "codebook"):
            if number(getattr(self, name), f"codec loss: {name}") < 0:
                raise ValueError(f"codec loss: {name} must not be negative, got {getattr(self, name)}")
        if self.kind not in ("hinge", "least squares"):
            raise ValueError(f"codec loss: kind {shown(self.kind)}: expected 'hinge' or 'least squares'")
        for name, least in (("windows", 4), ("bands", 1)):
            values = getattr(self, name)
            if not is_listed(values) or not values:
                raise ValueError(f"codec loss: {name} must be a list of whole numbers, got {shown(values)}")
            for value in values:
                whole(value, f"codec loss: one of {name}", least, LARGEST)
        if len(self.windows) != len(self.bands):
            raise ValueError(f"codec loss: {len(self.windows)} windows but {len(self.bands)} numbers of bands")


def mel_filters(sample_rate: int, window: int, bands: int) -> Tensor:
    """[window/2+1, bands] triangles, evenly spaced from 0 to half the rate in mel = 2595 log10(1 + f/700); each sums
    to 1, or has its nearest bin where it lies between two.
    """
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    top = 2595 * math.log10(1 + sample_rate / 1400)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    rise = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rise, fall).clamp(min=0)
    empty = filters.sum(0) == 0
    nearest = (bins[:, None] - edges[1:-1]).abs().argmin(0)
    filters[nearest[empty], empty.nonzero()[:, 0]] = 1.0
    return (filters / filters.sum(0)).float()


class LogMel(nn.Module):
    """Samples [B, n] -> log-mel magnitudes [B, frames, bands], natural logarithm, and the complex STFT they are of
    [B, frames, window/2+1]: centred, zeros around the signal, a hop of a quarter window, divided by the window's sum.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, window: int, bands: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", mel_filters(sample_rate, window, bands), persistent=False)

    def forward(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        size = len(self.window)
        # Zeros by hand: torch.stft's own padding refuses signals shorter than the window.
        pcm = F.pad(pcm.float(), (size // 2, size // 2))
        bins = torch.fft.rfft(pcm.unfold(1, size, size // 4) * (self.window / self.window.sum()))
        # The square root's gradient at 0 is infinite without the small term.
        magnitude = (bins.real.square() + bins.imag.square() + 1e-12).sqrt()
        return (magnitude @ self.filters).clamp(min=FLOOR).log(), bins


class CodecLosses(nn.Module):
    """The terms of a codec's loss, each already times its weight; it has no parameters.

    Args:
        settings: the weights.
        sample_rate: of the codec, Hz.
    """

    def __init__(self, settings: CodecLossSettings, sample_rate: int):
        super().__init__()
        self.settings = settings
        self.mels = nn.ModuleList(
            LogMel(sample_rate, window, bands) for window, bands in zip(settings.windows, settings.bands, strict=True)
        )

    def reconstruction(self, pcm: Tensor, made: Tensor) -> dict[str, Tensor]:
        """Samples [B, n] and what the codec made of them [B, n] -> "mel" and, with a weight, "spectrum"."""
        mel = spectrum = pcm.new_zeros(())
        for measure in self.mels:
            (one, its_bins), (other, other_bins) = measure(pcm), measure(made)
            mel = mel + F.l1_loss(other, one)
            if self.settings.spectrum:
                off = soft(other_bins) - soft(its_bins)
                spectrum = spectrum + torch.view_as_real(off).abs().mean()
        terms = {"mel": self.settings.mel * mel / len(self.mels)}
        return terms | (
            {"spectrum": self.settings.spectrum * spectrum / len(self.mels)} if self.settings.spectrum else {}
        )

    def quantizer(self, quantized: Quantized) -> dict[str, Tensor]:
        """The quantiser's terms; "codebook" is 0 where codes move by a moving average."""
        return {
            "commitment": self.settings.commitment * quantized.commitment,
            "codebook": self.settings.codebook * quantized.codebook,
        }

    def generator(self, real: Features, fake: Features) -> dict[str, Tensor]:
        """What discriminators say of the codec's sound.

        Args:
            real, fake: layers of every discriminator for the original (no gradients needed) and for the codec's sound.
        """
        verdict = feature = fake[0][-1].new_zeros(())
        for theirs, ours in zip(real, fake, strict=True):
            said = ours[-1]
            verdict = verdict + ((1 - said).square() if self.settings.kind == "least squares" else -said).mean()
            for one, other in zip(theirs[:-1], ours[:-1], strict=True):
                one = one.detach()
                feature = feature + (other - one).abs().mean() / one.abs().mean().clamp(min=1e-4) / (len(ours) - 1)
        return {
            "adversarial": self.settings.adversarial * verdict / len(fake),
            "feature": self.settings.feature * feature / len(fake),
        }

    def discriminator(self, real: Features, fake: Features) -> Tensor:
        """The discriminators' loss for originals and for the codec's sound, which must be detached from the codec.

        hinge: max(0, 1 - real) + max(0, 1 + fake); least squares: (1 - real)^2 + fake^2; the mean of all.
        """
        loss = fake[0][-1].new_zeros(())
        for theirs, ours in zip(real, fake, strict=True):
            one, other = theirs[-1], ours[-1]
            if self.settings.kind == "least squares":
                loss = loss + (1 - one).square().mean() + other.square().mean()
            else:
                loss = loss + F.relu(1 - one).mean() + F.relu(1 + other).mean()
        return loss / len(fake)


def soft(bins: Tensor) -> Tensor:
    """Complex bins with their magnitudes to the power 0.3, for which quiet ones count too."""
    return bins * (bins.real.square() + bins.imag.square() + FLOOR**2) ** ((0.3 - 1) / 2)
