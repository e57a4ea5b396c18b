"""LogMelStream: any chunking gives the bits of the whole-window call."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import afn_kernels as ak
from afn_kernels.log_mel import _cpu_available, reference
from tests.budget import assert_within, assert_within_budget
from tests.orders import in_orders

built = pytest.mark.skipif(bool(_cpu_available()), reason=_cpu_available() or "built")
IMPLS = [pytest.param("cpu", marks=built), "reference"]


def noise(n: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.1
    return (x * 32767).clamp(-32768, 32767).to(torch.int16) if dtype == torch.int16 else x


def whole_windows(pcm: torch.Tensor, window: int, **options) -> list[torch.Tensor]:
    rows = [torch.nn.functional.pad(row, (0, window - len(row))) for row in pcm.split(window)]
    return [ak.log_mel(row[None], **options)[0] for row in rows]


def stream_in(stream, pcm: torch.Tensor, sizes: list[int]) -> list:
    windows = []
    for chunk in pcm.split(sizes):
        windows += stream.push(chunk)
    last = stream.finish()
    return windows if last is None else [*windows, last]


def cut(total: int, largest: int, seed: int) -> list[int]:
    choose, sizes = random.Random(seed), []
    while total:
        sizes.append(min(total, choose.randint(0, largest)))
        total -= sizes[-1]
    return sizes


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_thirty_second_windows(impl, dtype):
    pcm = noise(480_000 * 2 + 77_777, 1, dtype)
    windows = stream_in(ak.LogMelStream(impl=impl), pcm, cut(len(pcm), 20_000, 1))
    expected = whole_windows(pcm, 480_000, impl=impl)
    assert [window.samples for window in windows] == [480_000, 480_000, 77_777]
    assert [window.valid_frames for window in windows] == [3000, 3000, 487]
    for window, features in zip(windows, expected, strict=True):
        assert torch.equal(window.features, features)


@built
@settings(deadline=None, max_examples=60)
@given(
    total=st.integers(1, 9_000),
    largest=st.sampled_from([1, 7, 159, 160, 161, 400, 3_000, 20_000]),
    hops=st.integers(2, 40),
    n_mels=st.sampled_from([80, 128]),
    seed=st.integers(0, 2**20),
)
def test_any_chunking(total, largest, hops, n_mels, seed):
    pcm, window = noise(total, seed), 160 * hops
    stream = ak.LogMelStream(n_mels=n_mels, window_samples=window, impl="cpu")
    windows = stream_in(stream, pcm, cut(total, largest, seed))
    expected = whole_windows(pcm, window, n_mels=n_mels, impl="cpu")
    assert len(windows) == len(expected)
    for got, features in zip(windows, expected, strict=True):
        assert torch.equal(got.features, features)


@pytest.mark.parametrize("impl", IMPLS)
def test_early_frames_are_final(impl):
    pcm, stream = noise(48_000, 3), ak.LogMelStream(window_samples=48_000, impl=impl)
    early = []
    for chunk in pcm[:-1].split(5_003):
        assert stream.push(chunk) == []
        early.append(stream.log_energies())
    (window,) = stream.push(pcm[-1:])
    same = [x[0].sqrt() for x in in_orders(lambda: reference.mel_energies(pcm[None], 128))]
    exact = reference.mel_energies(pcm[None].double(), 128)[0].sqrt()
    for seen in early:
        kept = slice(seen.shape[1])
        amplitude = (10 ** (seen.double() / 2)).float()
        assert_within_budget(amplitude, [x[:, kept] for x in same], exact[:, kept])
    assert early[0].shape[1] == (5_003 - 201) // 160 + 1
    features = (torch.maximum(early[-1], early[-1].max() - 8) + 4) / 4
    assert_within(window.features[:, : features.shape[1]], features, 2 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_stream_can_be_used_again(impl):
    stream = ak.LogMelStream(window_samples=16_000, impl=impl)
    assert stream.finish() is None
    first = stream_in(stream, noise(9_999, 4) * 100, [9_999])
    second = stream_in(stream, noise(5_000, 5), [2_500, 2_500])
    assert torch.equal(first[0].features, whole_windows(noise(9_999, 4) * 100, 16_000, impl=impl)[0])
    assert torch.equal(second[0].features, whole_windows(noise(5_000, 5), 16_000, impl=impl)[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_nan_stays_in_its_window(impl):
    pcm = noise(3 * 3_200, 6)
    pcm[4_000] = float("nan")
    windows = stream_in(ak.LogMelStream(window_samples=3_200, impl=impl), pcm, cut(len(pcm), 500, 6))
    assert [bool(window.features.isnan().all()) for window in windows] == [False, True, False]
    assert [bool(window.features.isfinite().all()) for window in windows] == [True, False, True]


def test_half_precision_features():
    stream = ak.LogMelStream(window_samples=3_200, out_dtype=torch.bfloat16)
    (window,) = stream.push(noise(3_200, 7))
    assert torch.equal(window.features, ak.log_mel(noise(3_200, 7)[None], out_dtype=torch.bfloat16)[0])


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (torch.zeros(2, 160), r"\[2, 160\]"),
        (torch.zeros(160, dtype=torch.float64), "float64"),
        (torch.zeros(160, device="meta"), "meta"),
    ],
)
def test_bad_chunks(chunk, message):
    with pytest.raises(ValueError, match=message):
        ak.LogMelStream().push(chunk)


@pytest.mark.parametrize("options", [{"n_mels": 5}, {"window_samples": 1000}, {"impl": "gpu"}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="log_mel"):
        ak.LogMelStream(**options)
