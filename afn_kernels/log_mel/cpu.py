"""The compiled kernel of csrc/cpu: frames as SIMD lanes, a 16 x 25 prime-factor FFT, sparse mel bands."""

import torch

from afn_kernels import _cpu
from afn_kernels._kept import kept
from afn_kernels.log_mel.tables import HOP, hann_window, mel_filters


@kept
def mel_plan(n_mels: int) -> _cpu.MelPlan:
    """The window and the non-zero part of each mel filter, as the extension takes them."""
    first, count, weights = [], [], []
    for filter_ in mel_filters(n_mels).T:
        bins = filter_.nonzero().flatten().tolist() or [0]
        first.append(bins[0])
        count.append(bins[-1] - bins[0] + 1)
        weights += filter_[bins[0] : bins[-1] + 1].tolist()
    return _cpu.MelPlan(hann_window().tolist(), first, count, weights)


def log_mel(
    pcm: torch.Tensor,
    *,
    n_mels: int = 128,
    out_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    threads: int | None = None,
    level: str = "",
) -> torch.Tensor:
    """As ``afn_kernels.log_mel``; ``threads`` defaults to PyTorch's, ``level`` to $AFN_SIMD or the fastest."""
    if pcm.stride(1) != 1:
        pcm = pcm.contiguous()
    rows, samples = pcm.shape
    direct = out is not None and out.dtype == torch.float32 and out.is_contiguous()
    features = out if direct else torch.empty(rows, n_mels, samples // HOP, dtype=torch.float32, device="cpu")
    _cpu.log_mel(
        pcm.data_ptr(),
        pcm.dtype == torch.int16,
        rows,
        samples,
        pcm.stride(0),
        mel_plan(n_mels),
        features.data_ptr(),
        threads or torch.get_num_threads(),
        level,
    )
    if direct:
        return out
    return features.to(out_dtype) if out is None else out.copy_(features)


def mel_energies(pcm: torch.Tensor, begin: int, end: int, out: torch.Tensor) -> int:
    """Mel energies of frames begin to end of one row [T] float32 into out [n_mels, frames]; the largest as bits."""
    plan = mel_plan(len(out))
    return _cpu.mel_energies(pcm.data_ptr(), False, len(pcm), begin, end, plan, out.data_ptr(), out.shape[1])


def log_scale(energies: torch.Tensor, largest: int) -> torch.Tensor:
    """Clamped and scaled logarithm of the mel energies of one row, whose largest is given as bits."""
    features = torch.empty_like(energies)
    _cpu.log_scale(energies.data_ptr(), features.data_ptr(), energies.numel(), largest)
    return features
