"""What tells a codec's sound from an original in training: periods of the wave and complex spectra."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afn_model.speech.codec_loss import Features

SLOPE = 0.1


def _normed(layer: nn.Conv2d) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


class PeriodDiscriminator(nn.Module):
    """The wave folded to [n/period, period], so that a column holds every period-th sample; HiFi-GAN's, Kong et al.
    2020, arXiv:2010.05646.
    """

    def __init__(self, period: int, width: int, layers: int = 4):
        super().__init__()
        self.period = period
        sizes = [1, *(min(width * 4**i, width * 32) for i in range(layers))]
        self.layers = nn.ModuleList(_normed(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0))) for a, b in pairwise(sizes))
        self.verdict = _normed(nn.Conv2d(sizes[-1], 1, (3, 1), 1, (1, 0)))

    def forward(self, pcm: Tensor) -> list[Tensor]:
        folded = F.pad(pcm, (0, -pcm.shape[1] % self.period))
        return _judged(self, folded.reshape(len(pcm), 1, -1, self.period))


class SpectrumDiscriminator(nn.Module):
    """Real and imaginary parts of an STFT as an image [2, frames, bins]; EnCodec's, Défossez et al. 2022,
    arXiv:2210.13438.
    """

    window: Tensor

    def __init__(self, window: int, width: int, layers: int = 4):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.layers = nn.ModuleList(
            _normed(nn.Conv2d(2 if i == 0 else width, width, (3, 9), (1, 1 if i == 0 else 2), (1, 4)))
            for i in range(layers)
        )
        self.verdict = _normed(nn.Conv2d(width, 1, 3, 1, 1))

    def forward(self, pcm: Tensor) -> list[Tensor]:
        size = len(self.window)
        pcm = F.pad(pcm, (size // 2, size // 2))
        bins = torch.fft.rfft(pcm.unfold(1, size, size // 4) * (self.window / self.window.sum().sqrt()))
        return _judged(self, torch.view_as_real(bins).permute(0, 3, 1, 2))


def _judged(judge: PeriodDiscriminator | SpectrumDiscriminator, x: Tensor) -> list[Tensor]:
    found = []
    for layer in judge.layers:
        x = F.leaky_relu(layer(x), SLOPE)
        found.append(x)
    return [*found, judge.verdict(x)]


class Discriminators(nn.Module):
    """Several of both kinds.

    Args:
        periods: of the period discriminators.
        windows: of the spectrum discriminators.
        width: channels of their first layer.
    """

    def __init__(
        self, periods: Sequence[int] = (2, 3, 5, 7, 11), windows: Sequence[int] = (2048, 1024, 512), width: int = 32
    ):
        super().__init__()
        self.judges = nn.ModuleList(
            [PeriodDiscriminator(period, width) for period in periods]
            + [SpectrumDiscriminator(window, width) for window in windows]
        )
        if not self.judges:
            raise ValueError("discriminators need a period or a window")

    def forward(self, pcm: Tensor) -> Features:
        """Samples [B, n], n from 1 -> of each discriminator its layers, the last one its verdicts."""
        return [judge(pcm.float()) for judge in self.judges]
