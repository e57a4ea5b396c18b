"""How near a codec's or a talker's sound is to another, without a network to judge it."""

from __future__ import annotations

import torch
from torch import Tensor

from afn_model.speech.codec_loss import LogMel

DECIBELS = 8.685889638065035  # of a natural logarithm of magnitudes
WINDOW_SECONDS, BANDS = 0.064, 80
QUIET = 40.0  # dB below the loudest frame: no speech


def mel_distance(pcm: Tensor, other: Tensor, sample_rate: int) -> float:
    """Mean absolute difference of log-mel magnitudes, in dB; 0 for the same sound, phases do not count.

    Windows of 64 ms (the nearest power of two), a quarter of it apart, in 80 bands; what is 74 dB below full scale or
    less counts as silence.

    Args:
        pcm, other: [n] or [B, n] samples of the same length.
        sample_rate: Hz.

    Raises:
        ValueError: other shapes, no samples.
    """
    if pcm.shape != other.shape or pcm.ndim not in (1, 2) or not pcm.numel():
        raise ValueError(f"a distance is of two sounds of one length, got {tuple(pcm.shape)} and {tuple(other.shape)}")
    measure = _measure(sample_rate)
    one, two = (measure(p.cpu().reshape(-1, p.shape[-1]))[0] for p in (pcm, other))
    return float((one - two).abs().mean()) * DECIBELS


def speaker_similarity(pcm: Tensor, other: Tensor, sample_rate: int) -> float:
    """Cosine, from -1 to 1, of two speakers' long-term spectra.

    Of each the mean and the deviation of log-mel bands over the frames that are not quiet, the mean over bands taken
    away so that loudness does not count. It tells synthetic voices and recordings of one microphone apart; it knows
    nothing of what makes a person, and what is said and the channel move it too.

    Raises:
        ValueError: a sound that is silent, or not [n].
    """
    one, two = (_long_term(p, sample_rate) for p in (pcm, other))
    return float(torch.nn.functional.cosine_similarity(one, two, dim=0))


def _long_term(pcm: Tensor, sample_rate: int) -> Tensor:
    if pcm.ndim != 1 or not pcm.any():
        raise ValueError("a speaker's sound must be [n] samples that are not all zero")
    bands = _measure(sample_rate)(pcm.cpu()[None])[0][0]
    level = bands.mean(1)
    loud = bands[level > level.max() - QUIET / DECIBELS]
    mean, spread = loud.mean(0), loud.std(0, correction=0)
    return torch.cat([mean - mean.mean(), spread - spread.mean()])


def _measure(sample_rate: int) -> LogMel:
    window = 1 << round(torch.tensor(sample_rate * WINDOW_SECONDS).log2().item())
    return LogMel(sample_rate, window, BANDS)
