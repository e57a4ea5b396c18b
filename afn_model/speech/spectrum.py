"""The causal STFT that the codec's encoder reads, and its inverse that the decoder writes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import afn_kernels as ak


def hann(size: int, device: torch.device) -> Tensor:
    """[size] float32, the periodic window of ``stft`` and ``istft``."""
    return torch.hann_window(size, device=device)


def stft(pcm: Tensor, size: int, hop: int, before: Tensor | None = None) -> Tensor:
    """Frame f of the STFT sees the samples [f·hop - (size - hop), f·hop + hop), none after its own hop.

    Args:
        pcm: [B, F·hop] float32.
        size: samples of a frame.
        hop: samples between frames.
        before: [B, size - hop], the samples before the first; default zeros.

    Returns:
        [B, F, size/2+1] complex, divided by the window's sum: a full-scale sine has 0.5.
    """
    padded = F.pad(pcm, (size - hop, 0)) if before is None else torch.cat([before, pcm], 1)
    if not pcm.shape[1]:  # which has no transform
        return padded.new_zeros(len(pcm), 0, size // 2 + 1, dtype=torch.complex64)
    window = hann(size, pcm.device)
    return torch.fft.rfft(padded.unfold(1, size, hop) * (window / window.sum()))


def istft(bins: Tensor, hop: int, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What ``stft`` was of: overlap-add, every sample divided as in the middle of a long signal.

    Args:
        bins: [B, F, size/2+1] complex.
        hop: samples between frames.
        state: [B, size - hop], what the call before left.

    Returns:
        [B, F·hop] samples from time -(size - hop) on, and the state [B, size - hop], to which later frames still add.
    """
    window = hann(2 * (bins.shape[2] - 1), bins.device)
    return ak.istft(torch.view_as_real(bins * window.sum()), window, hop, state)
