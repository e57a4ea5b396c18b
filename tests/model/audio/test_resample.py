"""Sample-rate conversion: the filter, its sums on every SIMD level and in PyTorch, and streams cut anywhere."""

import itertools
import math
import sys
from fractions import Fraction
from functools import lru_cache, partial

import pytest
import torch
import torchaudio

from afn_kernels import cpu
from afn_model.audio import resample as module
from afn_model.audio.resample import KAISER, ROLLOFF, RationalResampler, resample
from tests.budget import assert_same_but_rounding, assert_within, fresh

built = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available() or "built")
LEVELS = [] if cpu.available() else __import__("afn_kernels._cpu")._cpu.simd_levels()
IMPLS = [*LEVELS, "PyTorch"]
TO = 16_000
BY_BANK = [8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000]
BY_PHASE = [15_999, 16_011, 44_056, 191_999]
RIPPLE = 10 ** (-100 / 20)  # of the filter's gain, up to 0.9 and from 1.0 of the lower Nyquist frequency on
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=IMPLS)
def impl(request, monkeypatch):
    choose(request.param, monkeypatch)
    return request.param


def choose(impl: str, monkeypatch) -> None:
    if impl == "PyTorch":
        monkeypatch.setitem(sys.modules, "afn_kernels._cpu", None)
    else:
        monkeypatch.setenv("AFN_SIMD", impl)


def converted(signal, rate, to=TO):
    blocks = [signal] if isinstance(signal, torch.Tensor) else signal
    return torch.cat(list(resample(blocks, rate, to)))


def noise(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=fresh())


def rounding(rate: int, signal: torch.Tensor) -> float:
    """What adding up a filter's products in float32 may lose: a random walk of roundings of taps, products and sums.

    A rounding's standard deviation is eps / √12 of a number, none of which is much larger than the signal: three and
    more of the walk's are allowed.
    """
    taps = 2 * KAISER["lowpass_filter_width"] * max(1, rate / TO) / ROLLOFF
    return (3 * taps) ** 0.5 * EPS * float(signal.abs().max())


# The filter


def gains(rate: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(frequencies over the lower Nyquist frequency, gain) of the filter that the banks hold phases of."""
    low = min(rate, TO)
    cutoff, times = ROLLOFF * low / rate, 16
    width = module._width(cutoff)
    t = torch.arange(-width * times, width * times + 1, dtype=torch.float64) / times
    size = 1 << math.ceil(math.log2(64 * len(t)))
    gain = torch.fft.rfft(module._low_pass(t, cutoff), n=size).abs() / times
    return torch.arange(len(gain), dtype=torch.float64) * times / size * rate / low * 2, gain


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_the_filter_is_flat_to_nine_tenths_and_100_db_down_from_the_nyquist_frequency_on(rate):
    frequency, gain = gains(rate)
    assert float((gain - 1)[frequency <= 0.9].abs().max()) <= RIPPLE
    assert float(gain[frequency >= 1.0].max()) <= RIPPLE


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_a_bank_has_every_tap_of_its_filters(rate):
    ratio = Fraction(rate, TO)
    filters, first, step, width = module._bank(ratio.numerator, ratio.denominator)
    blocks, taps, outputs = filters.shape
    assert step * TO == blocks * outputs * rate
    half = KAISER["lowpass_filter_width"] / (ROLLOFF * min(1.0, 1 / ratio))
    for output in range(blocks * outputs):
        at = float(output * ratio)
        begin = int(first[output // outputs]) - width
        assert begin <= math.ceil(at - half)
        assert begin + taps > math.floor(at + half)
    # The gain at frequency 0 of every output.
    assert_within(filters.double().sum(1), torch.ones(blocks, outputs), 2 * RIPPLE + taps**0.5 * EPS)


# The sums


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 192_000])
def test_a_float64_convolution_is_the_oracle(rate, impl):
    signal = noise(max(rate // 4, 5_000))
    oracle = torchaudio.functional.resample(signal.double(), rate, TO, rolloff=ROLLOFF, **KAISER)
    assert_within(converted(signal, rate), oracle, rounding(rate, oracle))


@built
@pytest.mark.parametrize("rate", [44_100, 48_000, 191_999])
def test_instruction_sets_differ_by_rounding_alone(rate, monkeypatch):
    signal = noise(20_000)
    found = {}
    for one in IMPLS:
        with monkeypatch.context() as context:
            choose(one, context)
            found[one] = converted(signal, rate)
    for one in LEVELS:
        others = [found[other] for other in IMPLS if other != one]
        assert_same_but_rounding(found[one], others, name=one)


@pytest.mark.parametrize("rate", [*BY_BANK, *BY_PHASE])
def test_tones_keep_their_times_and_leave_no_alias(rate, impl):
    if impl == "portable16":
        pytest.skip("the code of avx512 in other instructions, slow")
    time = torch.arange(rate + 17, dtype=torch.float64) / rate
    tones = (300.0, 1234.5, 3500.0)
    signal = sum(torch.sin(2 * math.pi * hertz * time) for hertz in tones).float()
    out = converted(signal, rate)
    new_time = torch.arange(out.numel(), dtype=torch.float64) / TO
    expected = sum(torch.sin(2 * math.pi * hertz * new_time) for hertz in tones)
    inside = slice(200, -200)
    phases = sum((math.pi * hertz / rate / module._PHASES) ** 2 for hertz in tones) / 2 * 2
    bound = len(tones) * 2 * RIPPLE + phases + rounding(rate, signal)
    assert_within(out[inside], expected[inside], bound)
    if rate > 20_000:
        above = torch.sin(2 * math.pi * 9_000 * time).float()
        alias = converted(above, rate)[inside]
        phases = (math.pi * 9_000 / rate / module._PHASES) ** 2
        assert_within(alias, torch.zeros_like(alias), 2 * RIPPLE + phases + rounding(rate, above))


# Streams


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 16_011, 191_999])
def test_blocks_change_no_bit(rate, impl):
    signal = noise(30_011)
    whole = converted(signal, rate)
    sizes = torch.randint(1, 7_000, (100,), generator=fresh()).tolist()
    bounds = [size for size in itertools.accumulate(sizes) if size < len(signal)]
    for cut in (signal.split(4_096), signal.tensor_split(bounds), [signal[:1], signal[1:1], *signal[1:].split(12_345)]):
        assert torch.equal(converted(cut, rate), whole)


@pytest.mark.parametrize("rate", [*BY_BANK, *BY_PHASE])
@pytest.mark.parametrize("samples", [1, 2, 159, 1_000])
def test_lengths(rate, samples, impl):
    out = converted(noise(samples), rate)
    extra = out.numel() - math.ceil(samples * TO / rate)
    assert extra in ((0,) if rate in BY_BANK else (0, 1))
    assert torch.isfinite(out).all()


def test_nothing_and_the_same_rate(impl):
    assert not sum(block.numel() for block in resample([], 48_000, TO))
    signal = noise(100)
    assert torch.equal(converted(signal, TO), signal)


def test_threads_change_no_bit(impl):
    signal = noise(48_000)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append([converted(signal, rate) for rate in (48_000, 44_100, 16_011)])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@built
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("call", ["rational", "any ratio"])
def test_no_sample_outside_of_the_filters_is_read(call, level):
    x, run, _ = compiled(call)
    poisoned = torch.full((len(x) + 200,), torch.nan)
    poisoned[100:-100] = x
    found = run(poisoned[100:-100], level=level)
    assert torch.equal(found, run(x, level=level))
    assert torch.isfinite(found).all()


@lru_cache
def compiled(call: str):
    """(samples, exactly as many as it reads; the call; the same in PyTorch)."""
    if call == "rational":
        filters, first, step, _ = module._bank(441, 160)
        x = torch.randn(15 * step + int(first[-1]) + filters.shape[1], generator=torch.Generator().manual_seed(0))
        arguments = {"filters": filters, "first": first, "step": step, "groups": 16}
        return x, partial(cpu.resample_rational, **arguments), partial(module._rational, **arguments)
    filters, _ = module._phases(44_056, TO)
    arguments = {"filters": filters, "rate": 44_056, "to": TO, "first": 1_001, "count": 500}
    reach = 1_500 * 44_056 // TO - 1_001 * 44_056 // TO + filters.shape[1]
    x = torch.randn(reach, generator=torch.Generator().manual_seed(0))
    return x, partial(cpu.resample_any_ratio, **arguments), partial(module._any_ratio, **arguments)


@built
@pytest.mark.parametrize("call", ["rational", "any ratio"])
def test_the_twin_in_pytorch_takes_the_same_arguments(call):
    x, run, twin = compiled(call)
    assert_same_but_rounding(run(x), [twin(x), *(run(x, level=level) for level in LEVELS[1:])])


@built
@pytest.mark.parametrize("call", ["rational", "any ratio"])
def test_what_the_compiled_sums_refuse(call):
    x, run, _ = compiled(call)
    with pytest.raises(ValueError, match=f"reach beyond {len(x) - 1} samples"):
        run(x[:-1])
    with pytest.raises(ValueError, match="float64"):
        run(x.double())
    with pytest.raises(ValueError, match="contiguous"):
        run(x.repeat_interleave(2)[::2])
    with pytest.raises(ValueError, match="'mmx' does not run on this machine"):
        run(x, level="mmx")
    with pytest.raises(ValueError, match=r"not 16 in a multiple of 8|not a multiple of 32"):
        run(x, filters=run.keywords["filters"][..., :-1])


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_samples_that_are_pushed(rate):
    """The same bits as of the whole recording, and none is kept back that has all it needs."""
    signal = noise(rate + 7)
    expected = converted(signal, rate)
    stream = RationalResampler(rate, TO)
    pieces = [stream.push(piece) for piece in signal.split(1001)]
    assert sum(map(len, pieces)) > len(expected) - 400
    assert torch.equal(torch.cat([*pieces, stream.end()]), expected)


def test_rates_in_no_simple_ratio_are_not_pushed():
    with pytest.raises(ValueError, match="15999 Hz to 16000 Hz is no simple ratio: 15999 to 16000"):
        RationalResampler(15_999, TO)
