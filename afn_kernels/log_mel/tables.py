"""What implementations of log_mel share: Whisper's sizes, window and filters, and those of any ``MelConfig``."""

import math

import torch

from afn_kernels._kept import kept
from afn_kernels.log_mel.mel_config import MelConfig

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
BINS = N_FFT // 2 + 1
MEL_BREAK_HZ = 1000.0  # Slaney's scale: linear below, logarithmic above
MEL_PER_HZ = 3 / 200
MEL_LOG_STEP = 27 / math.log(6.4)
HTK_HZ, HTK_MEL = 700.0, 2595 / math.log(10)


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


@kept
def window(config: MelConfig) -> torch.Tensor:
    """The window [win_length] of a front end, times the scale of its samples, float64."""
    n = config.window_length
    options = {"periodic": config.periodic, "dtype": torch.float64}
    if config.window == "hamming":
        found = torch.hamming_window(n, **options)
    elif config.window == "rectangular":
        found = torch.ones(n, dtype=torch.float64)
    else:
        found = torch.hann_window(n, **options)
    return (found.clamp(min=0) ** 0.85 if config.window == "povey" else found) * config.scale


@kept
def filters(config: MelConfig) -> torch.Tensor:
    """Triangular filters [n_fft // 2 + 1, n_mels] of a front end, float64."""
    to_mel, to_hz = (_slaney_mel, _hz) if config.mel_scale == "slaney" else (_htk_mel, _htk_hz)
    frequencies = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64)[:, None]
    frequencies = frequencies * config.sample_rate / config.n_fft
    ends = to_mel(torch.tensor([config.f_min, config.top_hz], dtype=torch.float64))
    edges = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, config.n_mels + 2, dtype=torch.float64)
    if config.triangles == "mel":
        frequencies = to_mel(frequencies)
    else:
        edges = to_hz(edges)
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    found = torch.minimum(rising, falling).clamp(min=0)
    return found * (2 / (edges[2:] - edges[:-2])) if config.mel_norm else found


def _slaney_mel(hz: torch.Tensor) -> torch.Tensor:
    above = MEL_BREAK_HZ * MEL_PER_HZ + MEL_LOG_STEP * (hz.clamp(min=1.0) / MEL_BREAK_HZ).log()
    return torch.where(hz < MEL_BREAK_HZ, hz * MEL_PER_HZ, above)


def _htk_mel(hz: torch.Tensor) -> torch.Tensor:
    return HTK_MEL * (hz / HTK_HZ).log1p()


def _htk_hz(mel: torch.Tensor) -> torch.Tensor:
    return HTK_HZ * (mel / HTK_MEL).expm1()
