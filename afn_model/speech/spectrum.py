"""The causal STFT and its inverse: what the codec's encoder reads and what its decoder writes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def stft(pcm: Tensor, window: Tensor, hop: int, before: Tensor | None = None) -> Tensor:
    """Frame f of the STFT sees the samples [f·hop - (window - hop), f·hop + hop), none after its own hop.

    Args:
        pcm: [B, F·hop].
        window: [window].
        hop: samples between frames.
        before: [B, window - hop], the samples before the first; default zeros.

    Returns:
        [B, F, window/2+1] complex, divided by the window's sum.
    """
    overlap = len(window) - hop
    padded = F.pad(pcm, (overlap, 0)) if before is None else torch.cat([before, pcm], 1)
    if not pcm.shape[1]:
        return padded.new_zeros(len(pcm), 0, len(window) // 2 + 1, dtype=torch.complex64)
    return torch.fft.rfft(padded.unfold(1, len(window), hop) * (window / window.sum()))


def istft(spectrum: Tensor, window: Tensor, hop: int) -> Tensor:
    """Overlap-add of the windowed inverse transforms, divided as in the middle of a long signal.

    Frame f is written to the samples [f·hop - (window - hop), f·hop + hop), so that the first and the last
    window - hop samples of the result are not yet complete: a stream adds the last ones to the next call's first.

    Args:
        spectrum: [B, F, window/2+1] complex, as ``stft`` gives it.
        window: [window].
        hop: samples between frames.

    Returns:
        [B, window - hop + F·hop]: the first sample is that of time -(window - hop).
    """
    size = len(window)
    overlap, frames = size - hop, spectrum.shape[1]
    if not frames:
        return window.new_zeros(len(spectrum), overlap)
    squared = window.square().reshape(-1, hop).sum(0).repeat(size // hop)
    pieces = torch.fft.irfft(spectrum, size) * (window * window.sum() / squared)
    length = overlap + frames * hop
    return F.fold(pieces.transpose(1, 2), (1, length), (1, size), stride=(1, hop))[:, 0, 0]
