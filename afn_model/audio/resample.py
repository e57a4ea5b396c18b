"""Sample-rate conversion of a stream with torchaudio's filters: the same result however the stream is cut.

``torchaudio.functional.resample`` needs the whole recording in memory, runs as a slow strided convolution, and builds
a filter bank of (rate × new rate) / gcd² entries. Here a stream is converted block by block; usual rates are matrix
products with that same bank, and rates in no simple ratio interpolate between 512 phases of a filter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import pad

from afn_kernels._kept import kept

# A Kaiser window of about 100 dB stop band with a narrow transition below the new Nyquist frequency.
KAISER = {"resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 64, "beta": 14.769656}
ROLLOFF = 0.9475937
_LARGEST_BANK = 4_000_000
_PHASES = 512


def resample(blocks: Iterable[Tensor], rate: int, to: int) -> Iterator[Tensor]:
    """y[k] = Σ_n x[n] h(k · rate / to - n), with a low-pass filter h of cut-off 0.474 · min(rate, to).

    Args:
        blocks: [b] float32 samples each.
        rate: of the input, Hz.
        to: of the output, Hz.

    Returns:
        blocks of ceil(n · to / rate) samples in all; at a rate in no simple ratio there may be one more.

    Source: https://ccrma.stanford.edu/~jos/resample/.
    """
    ratio = Fraction(rate, to)
    if ratio == 1:
        return iter(blocks)
    if ratio.numerator * ratio.denominator <= _LARGEST_BANK:
        return _by_matrix(blocks, ratio.numerator, ratio.denominator)
    decimation = rate // to
    if decimation > 1:
        blocks = _by_matrix(blocks, decimation, 1)
    return _by_phase(blocks, rate, to * max(1, decimation))


def _by_matrix(blocks: Iterable[Tensor], source: int, target: int) -> Iterator[Tensor]:
    bank, step, width = _matrix_bank(source, target)
    taps = bank.shape[1]
    count = written = 0
    pending, silence = bank.new_zeros(width), bank.new_zeros(width + step)
    counted = ((block, block.numel()) for block in blocks)
    for block, samples in chain(counted, [(silence, 0)]):
        count += samples
        pending = torch.cat([pending, block])
        if pending.numel() < taps:
            continue
        frames = pending.unfold(0, taps, step)
        out = (frames @ bank.T).flatten()[: -(-count * target // source) - written]
        pending = pending[len(frames) * step :]
        written += out.numel()
        yield out


@kept(most=8)
def _matrix_bank(source: int, target: int) -> tuple[Tensor, int, int]:
    """(filters [outputs, taps], input samples from one group of outputs to the next, taps before the first sample)."""
    kernel, width = _kernel(source, target, ROLLOFF)
    repeats = max(1, 160 // target)  # enough outputs at once for a matrix product to be worth it
    step = source * repeats
    bank = torch.zeros(repeats, target, 2 * width + step, dtype=torch.float32)
    for repeat in range(repeats):
        bank[repeat, :, repeat * source : repeat * source + kernel.shape[-1]] = kernel
    return bank.flatten(0, 1), step, width


def _kernel(source: int, target: int, rolloff: float) -> tuple[Tensor, int]:
    """(filters [target, taps] float32, taps before the sample), to the bit those of ``torchaudio.transforms.Resample``.

    For rates without a common divisor. That one makes some of its tensors in the default dtype, which is float32 here.
    """
    zeros, beta = KAISER["lowpass_filter_width"], torch.tensor(KAISER["beta"], dtype=torch.float32)
    cutoff = min(source, target) * rolloff
    width = math.ceil(zeros * source / cutoff)
    late = torch.arange(0, -target, -1, dtype=torch.float32)[:, None] / target
    t = torch.arange(-width, width + source, dtype=torch.float64) / source
    t = ((late + t) * cutoff).clamp(-zeros, zeros)
    window = torch.i0(beta * (1 - (t / zeros) ** 2).sqrt()) / torch.i0(beta)
    t = t * math.pi
    return (torch.where(t == 0, 1.0, t.sin() / t) * (window * (cutoff / source))).float(), width


def _by_phase(blocks: Iterable[Tensor], rate: int, to: int) -> Iterator[Tensor]:
    bank, width = _phase_bank(rate, to)
    taps = bank.shape[1]
    count = written = 0
    pending, silence = bank.new_zeros(width), bank.new_zeros(taps)
    origin = -width  # index in the recording of pending[0]
    counted = ((piece, piece.numel()) for block in blocks for piece in block.split(1 << 15))
    for block, samples in chain(counted, [(silence, 0)]):
        count += samples
        pending = torch.cat([pending, block])
        ready = origin + pending.numel() - taps + width + 1  # outputs before this input position have all their taps
        stop = -(-min(ready, count) * to // rate)
        if stop <= written:
            continue
        position = torch.arange(written, stop) * rate
        sample = position // to
        phase = (position % to).double() * _PHASES / to
        row = phase.long()
        filters = torch.lerp(bank[row], bank[row + 1], (phase - row).float()[:, None])
        yield (pending.unfold(0, taps, 1)[sample - width - origin] * filters).sum(1)
        written = stop
        used = min(stop * rate // to - width - origin, pending.numel())
        pending, origin = pending[used:], origin + used


@kept(most=8)
def _phase_bank(rate: int, to: int) -> tuple[Tensor, int]:
    """(filters [phases + 1, taps] for outputs 0, 1/512, ... 1 input sample late, taps before the sample)."""
    filters, width = _kernel(1, _PHASES, ROLLOFF * min(1.0, to / rate))
    return torch.cat([pad(filters, (0, 1)), pad(filters[:1], (1, 0))]), width
