"""Log-mel features: accuracy against float64 and transformers, invariances, bad input, dispatch."""

from functools import lru_cache

import numpy as np
import pytest
import torch

import afn_kernels as ak
from afn_kernels import _triton
from afn_kernels.log_mel import _cpu_available, reference
from afn_kernels.log_mel.tables import mel_filters
from tests.budget import assert_same_but_rounding, assert_within, assert_within_budget, largest, lost
from tests.cuda import compiler
from tests.orders import in_orders

built = pytest.mark.skipif(bool(_cpu_available()), reason=_cpu_available() or "built")
LEVELS = [] if _cpu_available() else __import__("afn_kernels._cpu")._cpu.simd_levels()
TRITON = ["triton"] if _triton.interpreted() and not _triton.available() else []
CUDA = ["cuda"] if TRITON and compiler() else []  # compiled for the host
IMPLS = [pytest.param("cpu", marks=built), "reference", *TRITON, *CUDA]
RATE, SECONDS = 16_000, 10
SEED = torch.initial_seed()


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, scale: float = 0.1) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed)) * scale


@lru_cache
def signals(draw: int = 0) -> dict[str, torch.Tensor]:
    """Windows [1, T] float32 of ``SECONDS``, fresh values in every run of the suite and for every ``draw``."""
    g, samples = rng(SEED + draw), SECONDS * RATE
    t = torch.arange(samples, dtype=torch.float64) / RATE
    white = torch.randn(samples, generator=g, dtype=torch.float64)
    hz = 200 + 3000 * torch.rand(1, generator=g, dtype=torch.float64)
    phase = 2 * torch.pi * torch.cumsum(120 + 40 * torch.sin(2 * torch.pi * 0.7 * t), 0) / RATE
    voice = sum(torch.sin(k * phase) / k**1.2 for k in range(1, 30))
    clicks = torch.zeros(samples, dtype=torch.float64)
    clicks[torch.randint(0, samples, (20,), generator=g)] = 1.0
    found = {
        "speech-like": 0.1 * voice * torch.sin(2 * torch.pi * 3 * t).clamp(min=0).sqrt() + 1e-4 * white,
        "noise, then silence": 0.1 * white * (t < 5),
        # Pitches drift: a periodic signal repeats a handful of rounding errors, and their mean is a throw of dice.
        "tone": 0.5 * torch.sin(2 * torch.pi * (hz * t + t * t)),
        "sweep": 0.3 * torch.sin(2 * torch.pi * (hz * t + 300 * t * t)),
        "silence": 0 * t,
        "clicks": clicks,
        "clicks in a whisper": clicks + 1e-5 * white,
        "full-scale square": torch.sin(2 * torch.pi * (1.7 * hz * t + 10 * t * t)).sign(),
    }
    return {name: x.float()[None] for name, x in found.items()}


@lru_cache
def oracle(name: str, draw: int = 0) -> torch.Tensor:
    return reference.log_mel(signals(draw)[name].double(), out_dtype=torch.float64)


@lru_cache
def transformers_features(name: str, draw: int = 0) -> torch.Tensor:
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(feature_size=128, chunk_length=SECONDS)
    features = extract(signals(draw)[name][0].numpy(), sampling_rate=RATE, return_tensors="np").input_features
    return torch.from_numpy(np.asarray(features))


def amplitude(features: torch.Tensor) -> torch.Tensor:
    """sqrt(mel energy), where float32's error has a bounded size; a logarithm magnifies that of a near-empty bin."""
    return 10 ** (2 * features.double() - 2)


def run(level: str, pcm: torch.Tensor, **options) -> torch.Tensor:
    if level == "reference":
        return reference.log_mel(pcm, **options)
    if level in ("triton", "cuda"):
        return ak.log_mel(pcm, impl=level, **options)
    from afn_kernels.log_mel import cpu

    return cpu.log_mel(pcm, level=level, **options)


@lru_cache(16)
def features_of(level: str, name: str) -> torch.Tensor:
    """The features of a signal, for the tests that compare them."""
    return run(level, signals()[name])


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_are_transformers_filters(n_mels):
    from transformers import WhisperFeatureExtractor

    theirs = torch.from_numpy(WhisperFeatureExtractor(feature_size=n_mels).mel_filters)
    # A few roundings of frequencies up to 8000 Hz, against the narrowest filter's width.
    assert_within(mel_filters(n_mels), theirs, 64 * torch.finfo(torch.float64).eps * theirs.max())


@pytest.mark.parametrize("level", [*LEVELS, *TRITON, *CUDA, "reference"])
@pytest.mark.parametrize("name", signals())
def test_no_further_from_float64_than_transformers(level, name):
    ours, theirs, exact = features_of(level, name), transformers_features(name), oracle(name)
    half_ulp = 2.0**-24  # of a feature of size 1 to 2
    # A mean over 128,000 features is no throw of dice: it needs no factor.
    assert (ours - exact).abs().mean() <= (theirs - exact).abs().mean() + half_ulp
    top = amplitude(exact).max()
    assert_within(amplitude(ours), amplitude(exact), (2 * transformers_lose(name) + 2.0**-23) * top)


@lru_cache
def transformers_lose(name: str) -> float:
    """The largest error of transformers' amplitudes, from three draws of the signal, each a throw of dice."""
    pairs = [[amplitude(x(name, draw)) for x in (transformers_features, oracle)] for draw in range(3)]
    return largest([one for theirs, exact in pairs for one in lost([theirs], exact)])


@pytest.mark.parametrize("level", [*LEVELS, *TRITON, "reference"])
def test_pooled_error_is_below_that_of_transformers(level):
    ours, theirs = (
        torch.stack([(features(name) - oracle(name)).abs() for name in signals()])
        for features in (lambda name: features_of(level, name), transformers_features)
    )
    print(f"{level}: max {ours.max():.1e} mean {ours.mean():.1e}; theirs {theirs.max():.1e} {theirs.mean():.1e}")
    assert ours.mean() < theirs.mean()
    assert ours.mean() < 1e-6


@pytest.mark.parametrize("level", [*LEVELS, *TRITON, *CUDA])
@pytest.mark.parametrize("frames", [2, 3, 7, 15, 16, 17, 63, 255, 257, 999, 1000])
@pytest.mark.parametrize("n_mels", [80, 128])
def test_lengths(level, frames, n_mels):
    rows = 1 if level == "cuda" and frames > 300 else 3  # a second a row on the host
    pcm, expected, in_float32 = noise_by_reference(n_mels, frames, rows)
    out = torch.full((rows, n_mels, frames), float("nan"))
    assert run(level, pcm, n_mels=n_mels, out=out) is out
    # Orders of summation change nothing in the transform: other draws of the noise show how far it can go.
    means, amplitudes = zip(*reference_loses_on_noise(n_mels, min(frames, 63)), strict=True)
    mean = 2 * largest([*(float((x - expected).abs().mean()) for x in in_float32), *means]) + 2.0**-24
    assert_within((out - expected).abs().mean(), torch.zeros(()), mean, name="mean")
    exact, *here = (amplitude(x) for x in (expected, *in_float32))
    assert_within_budget(amplitude(out).float(), here, exact, elsewhere=amplitudes, name="amplitude")


@lru_cache
def noise_by_reference(n_mels: int, frames: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Noise for every level, its features in float64, and in float32 in several orders of summation."""
    pcm = noise(rows, 160 * frames, seed=SEED + 8)
    exact = reference.log_mel(pcm.double(), n_mels=n_mels, out_dtype=torch.float64)
    return pcm, exact, in_orders(lambda: reference.log_mel(pcm, n_mels=n_mels), 4)


@lru_cache
def reference_loses_on_noise(n_mels: int, frames: int) -> list[tuple[float, float]]:
    """The mean error of a feature and the largest of an amplitude, in eight draws."""
    losses = []
    for draw in range(8):
        pcm = noise(3, 160 * frames, seed=SEED + draw)
        exact, found = (reference.log_mel(x, n_mels=n_mels, out_dtype=x.dtype) for x in (pcm.double(), pcm))
        losses.append((float((found - exact).abs().mean()), *lost([amplitude(found)], amplitude(exact))))
    return losses


@pytest.mark.parametrize("impl", IMPLS)
def test_int16_is_float32_of_the_same_samples(impl):
    pcm = torch.randint(-32768, 32768, (2, 16_000), generator=rng(1), dtype=torch.int32).to(torch.int16)
    assert torch.equal(ak.log_mel(pcm, impl=impl), ak.log_mel(pcm.float() / 32768, impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_do_not_see_each_other(impl):
    pcm = noise(5, 9_600) * torch.tensor([1.0, 1e-3, 0.0, 3.0, 0.1])[:, None]
    whole = ak.log_mel(pcm, impl=impl)
    orders = 8 if impl == "reference" else 1  # a kernel keeps its own order
    for row, features in zip(pcm, whole, strict=True):
        alone = in_orders(lambda row=row: amplitude(ak.log_mel(row[None], impl=impl)[0]).float(), orders)
        assert_same_but_rounding(amplitude(features).float(), alone)


@built
def test_frames_do_not_see_each_other():
    quiet, loud = noise(1, 48_000, scale=1e-3), noise(1, 48_000, scale=1e-3)
    loud[:, 24_000:24_400] *= 3e3
    quiet_x, loud_x = (energies(pcm) for pcm in (quiet, loud))
    untouched = torch.ones(300, dtype=torch.bool)
    untouched[148:154] = False
    assert torch.equal(quiet_x[:, untouched], loud_x[:, untouched])
    assert not torch.equal(quiet_x, loud_x)


def energies(pcm: torch.Tensor) -> torch.Tensor:
    from afn_kernels.log_mel import cpu

    out = torch.empty(128, pcm.shape[1] // 160)
    cpu.mel_energies(pcm[0], 0, out.shape[1], out)
    return out


@built
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_threads_do_not_change_a_bit(rows):
    from afn_kernels.log_mel import cpu

    for frames in (1001, 4100):  # energies of a row do or do not fit the memory that is kept from row to row
        pcm = noise(rows, 160 * frames)
        one = cpu.log_mel(pcm, threads=1)
        for threads in (2, 3, 8):
            assert torch.equal(cpu.log_mel(pcm, threads=threads), one)


@built
def test_large_fresh_results_ask_for_huge_pages(monkeypatch):
    from afn_kernels import _cpu
    from afn_kernels.log_mel import cpu

    asked = []
    monkeypatch.setattr(_cpu, "use_huge_pages", lambda address, size: asked.append((address, size)))
    pcm = noise(1, 160 * 3000).expand(22, -1)
    found = cpu.log_mel(pcm)
    assert asked == [(found.data_ptr(), found.nbytes)]
    cpu.log_mel(pcm, out=found)
    cpu.log_mel(pcm[:21])
    assert len(asked) == 1, "memory of the caller, or that malloc may keep, stays as it is"


@built
def test_huge_pages_change_no_byte():
    from afn_kernels import _cpu

    kept = torch.arange(1 << 20)
    for first, count in ((0, 1 << 20), (5, (1 << 20) - 5), (1, 3)):
        _cpu.use_huge_pages(kept[first:].data_ptr(), 8 * count)
    assert torch.equal(kept, torch.arange(1 << 20))


@built
def test_sixteen_lanes_give_the_bits_of_four():
    pcm = noise(2, 160 * 333)
    assert torch.equal(run("portable16", pcm), run("portable", pcm))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_views_of_memory(impl, dtype):
    base = (noise(4, 4_900) * 8000).to(dtype) if dtype == torch.int16 else noise(4, 4_900)
    views = {
        "column slice": base[:, 37:4837],
        "every second row": base[::2, :4800],
        "every second sample": base[:, 1:4801:2],
        "one row repeated": base[:1, :4800].expand(2, -1),
        "transposed": base[:, :4800].T.contiguous().T,
    }
    for name, view in views.items():
        assert torch.equal(ak.log_mel(view, impl=impl), ak.log_mel(view.contiguous(), impl=impl)), name


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_out(impl, out_dtype):
    pcm = noise(2, 16_000)
    expected = ak.log_mel(pcm, out_dtype=out_dtype, impl=impl)
    assert expected.dtype == out_dtype
    strided = torch.full((2, 128, 200), float("nan"), dtype=out_dtype)[:, :, ::2]
    poisoned = torch.full((2, 128, 100), float("nan"), dtype=out_dtype)
    for out in (poisoned, strided):
        assert ak.log_mel(pcm, out_dtype=out_dtype, out=out, impl=impl) is out
        assert torch.equal(out, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 199, 5_000, 7_999])
def test_a_bad_sample_spoils_its_row_and_no_other(impl, bad, place):
    pcm = noise(3, 8_000)
    pcm[1, place] = bad
    features = ak.log_mel(pcm, impl=impl)
    assert features[1].isnan().all()
    assert features[[0, 2]].isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_overflow_spoils_its_row(impl):
    assert ak.log_mel(noise(1, 8_000, scale=1e25), impl=impl).isnan().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch(impl):
    assert ak.log_mel(torch.empty(0, 3200), impl=impl).shape == (0, 128, 20)


def test_gradient_of_the_reference():
    pcm = noise(1, 320).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: reference.log_mel(x, n_mels=80, out_dtype=torch.float64), pcm, fast_mode=True
    )


def test_auto_differentiates_through_the_reference():
    pcm = noise(1, 3200).requires_grad_()
    assert ak.explain("log_mel", pcm).chosen == "reference"
    ak.log_mel(pcm).sum().backward()
    assert pcm.grad.isfinite().all()
    assert pcm.grad.abs().max() > 0


@built
def test_dispatch():
    assert ak.explain("log_mel", noise(1, 320)).chosen == "cpu"
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        ak.log_mel(noise(1, 320), impl="fast")
    with pytest.raises(ValueError, match="no gradient"):
        ak.log_mel(noise(1, 320).requires_grad_(), impl="cpu")
    with pytest.raises(ValueError, match="float64"):
        ak.log_mel(noise(1, 320).double(), impl="cpu")
    with torch.no_grad():
        ak.log_mel(noise(1, 320).requires_grad_(), impl="cpu")


@built
def test_simd_level_by_name(monkeypatch):
    from afn_kernels import _cpu

    assert _cpu.simd_level() == _cpu.simd_levels()[0]
    monkeypatch.setenv("AFN_SIMD", "portable")
    assert _cpu.simd_level() == "portable"
    assert torch.equal(ak.log_mel(noise(1, 3200), impl="cpu"), run("portable", noise(1, 3200)))
    monkeypatch.setenv("AFN_SIMD", "mmx")
    with pytest.raises(ValueError, match="'mmx' does not run on this machine"):
        ak.log_mel(noise(1, 3200), impl="cpu")


@pytest.mark.parametrize(
    ("pcm", "options", "message"),
    [
        (torch.zeros(1, 161), {}, "161 samples"),
        (torch.zeros(1, 160), {}, "160 samples"),
        (torch.zeros(1, 0), {}, "0 samples"),
        (torch.zeros(320), {}, r"\[320\]"),
        (torch.zeros(1, 1, 320), {}, r"\[1, 1, 320\]"),
        (torch.zeros(1, 320, dtype=torch.float16), {}, "float16"),
        (torch.zeros(1, 320, dtype=torch.int32), {}, "int32"),
        (torch.zeros(1, 320), {"n_mels": 64}, "n_mels=64"),
        (torch.zeros(1, 320), {"out_dtype": torch.int16}, "int16"),
        (torch.zeros(1, 320), {"out": torch.zeros(1, 128, 3)}, r"\[1, 128, 3\]"),
        (torch.zeros(1, 320), {"out": torch.zeros(1, 128, 2, dtype=torch.bfloat16)}, "bfloat16"),
        (torch.zeros(1, 320, requires_grad=True), {"out": torch.zeros(1, 128, 2)}, "gradient"),
    ],
)
def test_bad_input(pcm, options, message):
    with pytest.raises(ValueError, match=message):
        ak.log_mel(pcm, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_registered_op(dtype):
    pcm = (noise(2, 1600) * 3000).to(dtype)
    torch.library.opcheck(torch.ops.afn.log_mel.default, (pcm, 128, torch.float32, "auto"))
    if dtype == torch.float32:
        arguments = (pcm.requires_grad_(), 80, torch.float32, "auto")
        torch.library.opcheck(torch.ops.afn.log_mel.default, arguments, rtol=1e-3, atol=1e-3)


def test_compile_sees_one_op():
    seen = []

    def backend(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(lambda x: ak.log_mel(x) + 1, fullgraph=True, backend=backend)
    pcm = noise(2, 3200)
    assert torch.equal(compiled(pcm), ak.log_mel(pcm) + 1)
    assert torch.ops.afn.log_mel in seen or torch.ops.afn.log_mel.default in seen


def test_compile_with_gradient():
    compiled = torch.compile(ak.log_mel, fullgraph=True, backend="aot_eager")
    a, b = noise(1, 3200).requires_grad_(), noise(1, 3200).requires_grad_()
    compiled(a).square().sum().backward()

    def eager(pcm):
        return torch.autograd.grad(ak.log_mel(pcm).square().sum(), pcm)[0]

    # A Fourier transform has one order here; samples that are a rounding away stand in for others.
    moved = [1 + torch.finfo(torch.float32).eps * (torch.rand_like(b) - 0.5) for _ in range(8)]
    assert_same_but_rounding(a.grad, [eager(b), *(eager((b * x).detach().requires_grad_()) for x in moved)])
