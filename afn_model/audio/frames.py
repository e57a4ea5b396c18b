"""Samples, frames and tokens: how many of each a recording has, and its 30-second windows."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
HOP = 160
WINDOW = 30 * SAMPLE_RATE
MIN_SAMPLES = 2 * HOP + 1  # the shortest clip that gives one token
Count = TypeVar("Count", int, Tensor)  # of one window, or of each of many


def mel_frames(n: Count) -> Count:
    """Valid mel frames of a window: L = ceil(n / 160).

    Args:
        n: samples at 16 kHz, at most one window.
    """
    return -(-n // HOP)


def conv_frames(mel: Count) -> Count:
    """Valid frames after the stride-2 convolution: c = (L - 1) // 2 + 1, and 0 for L = 0."""
    return (mel + 1) // 2


def token_frames(conv: Count) -> Count:
    """Frames after pooling by two, one audio token each: t = (c - 2) // 2 + 1 = c // 2."""
    return conv // 2


def audio_tokens(n: int) -> int:
    """Audio tokens of a whole clip: 750 for each full 30 s window, and those of the last window.

    Args:
        n: samples at 16 kHz.
    """
    full, rest = divmod(n, WINDOW)
    return full * token_frames(conv_frames(mel_frames(WINDOW))) + token_frames(conv_frames(mel_frames(rest)))


def window_samples(n: int) -> list[int]:
    """Valid samples of each window of a clip; a tail too short for a token (320 samples or fewer) is left out.

    Args:
        n: samples at 16 kHz.
    """
    full, rest = divmod(n, WINDOW)
    return [WINDOW] * full + ([rest] if rest >= MIN_SAMPLES else [])


def padded_width(longest: int) -> int:
    """Samples to store per window: whole hops, and three hops more of the zeros the convolutions see beyond the end.

    Args:
        longest: valid samples of the longest window, at 16 kHz.
    """
    return min(WINDOW, mel_frames(longest) * HOP + 3 * HOP)


def split_windows(pcm: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts a clip into non-overlapping 30 s windows, zero-padded on the right.

    Args:
        pcm: [n] samples at 16 kHz.

    Returns:
        windows [W, ``padded_width``] of ``pcm``'s dtype, and valid samples [W] int64.
    """
    samples = window_samples(pcm.numel())
    windows = pcm.new_zeros(len(samples), padded_width(max(samples, default=0)))
    for row, (count, piece) in enumerate(zip(samples, pcm.split(WINDOW), strict=False)):
        windows[row, :count] = piece
    return windows, torch.tensor(samples, dtype=torch.int64)
