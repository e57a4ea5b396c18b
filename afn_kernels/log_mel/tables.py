"""What every implementation of log_mel shares: frame sizes, the window and the mel filter bank."""

import math

import torch

from afn_kernels._kept import kept

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
BINS = N_FFT // 2 + 1
MEL_BREAK_HZ = 1000.0  # Slaney's scale: linear below, logarithmic above
MEL_PER_HZ = 3 / 200
MEL_LOG_STEP = 27 / math.log(6.4)


def _hz(mel: torch.Tensor) -> torch.Tensor:
    above = mel - MEL_BREAK_HZ * MEL_PER_HZ
    return torch.where(above < 0, mel / MEL_PER_HZ, MEL_BREAK_HZ * (above / MEL_LOG_STEP).exp())


@kept
def mel_filters(n_mels: int) -> torch.Tensor:
    """Triangular filters [201, n_mels] float64 on Slaney's mel scale, 0 to 8,000 Hz, each of unit area per Hz.

    Source: Slaney, Auditory Toolbox, Interval Research 1998-010.
    """
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, BINS, dtype=torch.float64)[:, None]
    top = MEL_BREAK_HZ * MEL_PER_HZ + MEL_LOG_STEP * math.log(SAMPLE_RATE / 2 / MEL_BREAK_HZ)
    edges = _hz(torch.linspace(0, 1, n_mels + 2, dtype=torch.float64) * top)
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))


@kept
def hann_window() -> torch.Tensor:
    """Periodic Hann window [400], float64."""
    return torch.hann_window(N_FFT, periodic=True, dtype=torch.float64)
