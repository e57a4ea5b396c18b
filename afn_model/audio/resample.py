"""Sample-rate conversion of a stream: the same bits however the stream is cut into blocks.

One low-pass filter, flat to 1e-5 up to 0.9 of the lower Nyquist frequency and 100 dB down from that frequency on.
Usual rates have a bank with one filter for each phase of the outputs; rates in no simple ratio interpolate between 512
phases. The sums are in csrc/cpu; without the compiled extension PyTorch adds up the same products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import pad

from afn_kernels import cpu
from afn_kernels._kept import kept

# As torchaudio.functional.resample takes them. Kaiser's formulas, which are good to 1 dB, for 101 dB: β = 0.1102 ·
# (101 - 8.7), and a transition of 0.1 of the lower Nyquist frequency takes (101 - 7.95) / (2.285 · 0.1 π) = 130 samples
# of the lower rate: 62 zeros of the sinc on either side.
KAISER = {"resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 62, "beta": 10.17}
ROLLOFF = 0.95  # the cut-off, in the middle of the transition
_LARGEST_BANK = 1 << 18  # coefficients: 1 MB
_PHASES = 512
_TOGETHER = 64  # groups of one product of PyTorch's: a fixed number, since its order of summation depends on it


def resample(blocks: Iterable[Tensor], rate: int, to: int) -> Iterator[Tensor]:
    """y[k] = Σ_n x[n] h(k · rate / to - n), with a low-pass filter h of cut-off 0.475 · min(rate, to).

    Args:
        blocks: [b] float32 samples each, on the CPU.
        rate: of the input, Hz.
        to: of the output, Hz.

    Returns:
        blocks of ceil(n · to / rate) samples in all; at a rate in no simple ratio there may be one more.

    Source: Kaiser's window, https://ccrma.stanford.edu/~jos/resample/.
    """
    ratio = Fraction(rate, to)
    if ratio == 1:
        return iter(blocks)
    source, target = ratio.numerator, ratio.denominator
    if math.prod(_bank_shape(source, target)) <= _LARGEST_BANK:
        return _by_bank(blocks, source, target)
    decimation = rate // to
    if decimation > 1:
        blocks = _by_bank(blocks, decimation, 1)
    return _by_phase(blocks, rate, to * max(1, decimation))


def _low_pass(t: Tensor, cutoff: float) -> Tensor:
    """h(t) = c sinc(c t) w(c t / zeros) with Kaiser's window w, t in input samples, c in input Nyquist frequencies."""
    zeros, beta = KAISER["lowpass_filter_width"], torch.tensor(KAISER["beta"], dtype=torch.float64)
    t = (t * cutoff).clamp(-zeros, zeros)
    return cutoff * torch.sinc(t) * torch.i0(beta * (1 - (t / zeros) ** 2).sqrt()) / torch.i0(beta)


def _width(cutoff: float) -> int:
    return math.ceil(KAISER["lowpass_filter_width"] / cutoff)


def _bank_shape(source: int, target: int) -> tuple[int, int, int]:
    """(blocks, taps, outputs of a block): filters of a block have as many taps as it takes to begin at one sample."""
    span = math.ceil((cpu.RESAMPLE_OUTPUTS - 1) * source / target)
    taps = 2 * _width(ROLLOFF * min(1.0, target / source)) + span + 2
    return target // math.gcd(target, cpu.RESAMPLE_OUTPUTS), taps, cpu.RESAMPLE_OUTPUTS


@kept(most=8)
def _bank(source: int, target: int) -> tuple[Tensor, Tensor, int, int]:
    """(filters [blocks, taps, 16] float32, first sample of each block, samples of a group, taps before the first)."""
    blocks, taps, outputs = _bank_shape(source, target)
    cutoff = ROLLOFF * min(1.0, target / source)
    width = _width(cutoff)
    output = torch.arange(blocks * outputs, dtype=torch.int64).view(blocks, 1, outputs)
    first = output[:, :, :1] * source // target
    sample = first - width + torch.arange(taps, dtype=torch.int64)[:, None]
    late = (output * source - sample * target).double() / target
    return _low_pass(late, cutoff).float(), first.flatten(), blocks * outputs * source // target, width


class RationalResampler:
    """``resample`` of a stream whose samples come when they come, at rates in a simple ratio: the same bits.

    Args:
        rate: of the input, Hz.
        to: of the output, Hz.

    Raises:
        ValueError: rates in no simple ratio.
    """

    def __init__(self, rate: int, to: int):
        ratio = Fraction(rate, to)
        self.source, self.target = ratio.numerator, ratio.denominator
        if math.prod(_bank_shape(self.source, self.target)) > _LARGEST_BANK:
            raise ValueError(f"{rate} Hz to {to} Hz is no simple ratio: {self.source} to {self.target}")
        self._count = self._written = 0
        if ratio == 1:
            return
        self._filters, self._first, self._step, width = _bank(self.source, self.target)
        self._convert, self._together = cpu.resample_rational, cpu.RESAMPLE_GROUPS
        if cpu.available():
            cpu.warn_missing("resampling")
            self._convert, self._together = _rational, _TOGETHER
        self._reach = int(self._first[-1]) + self._filters.shape[1]
        self._pending = self._filters.new_zeros(width)

    def push(self, block: Tensor) -> Tensor:
        """What the next samples [b] float32 complete, [n] float32."""
        return self._push(block, len(block))

    def end(self) -> Tensor:
        """What is left when the stream has ended; ceil(samples · to / rate) have come in all then."""
        if self.source == self.target:
            return torch.zeros(0, dtype=torch.float32, device="cpu")
        return self._push(self._filters.new_zeros(self._together * self._step + self._reach), 0)

    def _push(self, block: Tensor, samples: int) -> Tensor:
        if self.source == self.target:
            return block
        self._count += samples
        self._pending = torch.cat([self._pending, block])
        groups = max(0, (self._pending.numel() - self._reach) // self._step + 1) // self._together * self._together
        if not groups:
            return block[:0]
        out = self._convert(self._pending, self._filters, self._first, self._step, groups)
        out = out[: -(-self._count * self.target // self.source) - self._written]
        self._pending = self._pending[groups * self._step :]
        self._written += out.numel()
        return out


def _by_bank(blocks: Iterable[Tensor], source: int, target: int) -> Iterator[Tensor]:
    stream = RationalResampler(source, target)
    for block in blocks:
        if (out := stream.push(block)).numel():
            yield out
    if (out := stream.end()).numel():
        yield out


def _with_end(blocks: Iterable[Tensor], silence: Tensor) -> Iterator[tuple[Tensor, int]]:
    return chain(((block, block.numel()) for block in blocks), [(silence, 0)])


def _rational(x: Tensor, filters: Tensor, first: Tensor, step: int, groups: int) -> Tensor:
    """The twin of ``afn_kernels.cpu.resample_rational``."""
    out = x.new_empty(groups, *filters.shape[::2])
    for group in range(0, groups, _TOGETHER):
        for block, start in enumerate(first.tolist()):
            frames = x[group * step + start :].unfold(0, filters.shape[1], step)[:_TOGETHER]
            out[group : group + _TOGETHER, block] = frames.contiguous() @ filters[block]
    return out.flatten()


def _by_phase(blocks: Iterable[Tensor], rate: int, to: int) -> Iterator[Tensor]:
    filters, width = _phases(rate, to)
    convert: Callable[..., Tensor] = cpu.resample_any_ratio
    if cpu.available():
        cpu.warn_missing("resampling")
        convert = _any_ratio
    taps = filters.shape[1]
    count = written = 0
    pending, silence = filters.new_zeros(width), filters.new_zeros(taps)
    origin = -width  # index in the recording of pending[0]
    pieces = (piece for block in blocks for piece in block.split(1 << 15))
    for block, samples in _with_end(pieces, silence):
        count += samples
        pending = torch.cat([pending, block])
        ready = origin + pending.numel() - taps + width + 1  # outputs before this input position have all their taps
        stop = -(-min(ready, count) * to // rate)
        if stop <= written:
            continue
        yield convert(pending[written * rate // to - width - origin :], filters, rate, to, written, stop - written)
        written = stop
        used = min(stop * rate // to - width - origin, pending.numel())
        pending, origin = pending[used:], origin + used


@kept(most=8)
def _phases(rate: int, to: int) -> tuple[Tensor, int]:
    """(filters [phases + 1, taps] for outputs 0, 1/512, ... 1 input sample late, taps before the sample)."""
    cutoff = ROLLOFF * min(1.0, to / rate)
    width = _width(cutoff)
    late = torch.arange(_PHASES + 1, dtype=torch.float64)[:, None] / _PHASES
    filters = _low_pass(late - torch.arange(-width, width + 2, dtype=torch.float64), cutoff).float()
    return pad(filters, (0, -filters.shape[1] % cpu.RESAMPLE_LANES)), width


def _any_ratio(x: Tensor, filters: Tensor, rate: int, to: int, first: int, count: int) -> Tensor:
    """The twin of ``afn_kernels.cpu.resample_any_ratio``."""
    position = torch.arange(first, first + count, device="cpu") * rate
    sample = position // to - first * rate // to
    phase = (position % to).double() * _PHASES / to
    row = phase.long()
    mixed = torch.lerp(filters[row], filters[row + 1], (phase - row).float()[:, None])
    return (x.unfold(0, filters.shape[1], 1)[sample] * mixed).sum(1)
