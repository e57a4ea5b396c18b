import math

import pytest
import torch

import afn_kernels as ak
from tests.budget import assert_within, assert_within_budget

EPS64 = torch.finfo(torch.float64).eps


def complex_rotation(x, angle):
    """Pairs (d, d + D/2) as complex numbers turned by ``angle`` [T, D/2]."""
    a, b = x.double().chunk(2, -1)
    y = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat((y.real, y.imag), -1)


def frequencies(dim, theta=15_300_000.0):
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(28, 4, 128), (3, 1, 64), (2, 2, 2)])
def test_rotary_is_a_complex_rotation(heads, kv_heads, dim):
    q, k = torch.randn(9, heads, dim, dtype=torch.float64), torch.randn(9, kv_heads, dim, dtype=torch.float64)
    positions = torch.rand(9, dtype=torch.float64) * 100
    inv_freq = frequencies(dim)
    for found, x in zip(ak.rotary(q, k, positions, inv_freq), (q, k), strict=True):
        # The same angles: a rounding each for sine, cosine, two products and their sum.
        assert_within(found, complex_rotation(x, positions[:, None] * inv_freq), 4 * EPS64 * x.abs().max())


def test_rotary_scores_depend_on_the_difference_of_positions_alone():
    q, k = torch.randn(2, 1, 1, 64, dtype=torch.float64)
    inv_freq = frequencies(64)
    rounding = 2 * 1003.25 * EPS64 * q.norm() * k.norm()  # of angles up to 1003.25

    def score(a, b):
        at = lambda x, p: ak.rotary(x, x, torch.tensor([p], dtype=torch.float64), inv_freq)[0]  # noqa: E731
        return (at(q, a) * at(k, b)).sum()

    assert_within(score(3.25, 1.0), score(1003.25, 1001.0), rounding)
    assert (score(3.25, 1.0) - score(3.25, 2.0)).abs() > 1e3 * rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_precision(dtype):
    q, k = torch.randn(50, 4, 64).to(dtype), torch.randn(50, 2, 64).to(dtype)
    positions = torch.arange(50).float()
    inv_freq = frequencies(64).float()
    angle = positions.double()[:, None] * inv_freq.double()
    for found, x in zip(ak.rotary(q, k, positions, inv_freq), (q, k), strict=True):
        a, b = x.chunk(2, -1)
        low = positions[:, None] * inv_freq
        cos, sin = low.cos().to(dtype)[:, None], low.sin().to(dtype)[:, None]
        same = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        assert_within_budget(found, [same], complex_rotation(x, angle))


def test_rotary_gradients():
    q, k = (torch.randn(3, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2))
    positions = torch.tensor([0.0, 2.5, 7.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k: ak.rotary(q, k, positions, frequencies(8)), (q, k))


def closed_form(x, window, frame, theta=1200.0, window_factor=1.0, frame_factor=2 * math.pi):
    """RoTE pair by pair, in Python floats."""
    rotary_dim = int(x.shape[1] * 0.2)
    pairs = (rotary_dim + 1) // 2
    out = x.double().clone()
    for row, (w, j) in enumerate(zip(window.tolist(), frame.tolist(), strict=True)):
        t = 30.0 * w + 0.04 * j
        for pair in range(2 * pairs):
            f = theta ** (-2 * (pair % pairs) / rotary_dim)
            position = window_factor * w if pair < pairs else frame_factor * j
            phi = -2 * math.pi * t * position / 1200 * f
            a, b = float(x[row, 2 * pair]), float(x[row, 2 * pair + 1])
            out[row, 2 * pair] = a * math.cos(phi) - b * math.sin(phi)
            out[row, 2 * pair + 1] = b * math.cos(phi) + a * math.sin(phi)
    return out


WINDOW = torch.tensor([0, 0, 0, 1, 30, 59])
FRAME = torch.tensor([0, 1, 749, 0, 17, 749])


def rounding(x, dtype=torch.float64, window_factor=1.0):
    """How far phases of ``dtype`` may turn each row: four roundings of its largest phase."""
    t = 30.0 * WINDOW.double() + 0.04 * FRAME
    phase = 2 * math.pi * t / 1200 * torch.maximum(window_factor * WINDOW, 2 * math.pi * FRAME)
    return 2 * torch.finfo(dtype).eps * (1 + phase[:, None]) * x.abs().max()


@pytest.mark.parametrize("width", [1280, 160, 128])
def test_rote_in_float64_is_the_closed_form(width):
    x = torch.randn(6, width, dtype=torch.float64)
    found = ak.rote(x, WINDOW, FRAME, phase_dtype=torch.float64)
    assert_within(found, closed_form(x, WINDOW, FRAME), rounding(x))


def test_rote_with_the_earlier_ports_constants():
    x = torch.randn(6, 160, dtype=torch.float64)
    options = {"theta": 1200 / (2 * math.pi), "window_factor": 2 * math.pi, "frame_factor": 2 * math.pi}
    found = ak.rote(x, WINDOW, FRAME, phase_dtype=torch.float64, **options)
    assert_within(found, closed_form(x, WINDOW, FRAME, **options), rounding(x, window_factor=2 * math.pi))


def test_rote_in_float32_is_close_early_and_known_to_drift_late():
    # Parity with released weights needs the float32 order of operations; its error is part of the specification.
    x = torch.zeros(6, 1280, dtype=torch.float64)
    x[:, 0::2] = 1.0
    found, exact = ak.rote(x, WINDOW, FRAME), closed_form(x, WINDOW, FRAME)
    assert_within(found, exact, rounding(x, torch.float32))
    error = (found - exact).abs().amax(1)
    assert 10 * error[:3].max() < error.max()


def test_rote_passes_the_rest_through_and_keeps_norms():
    x = torch.randn(6, 1280)
    y = ak.rote(x, WINDOW, FRAME)
    assert torch.equal(y[:, 512:], x[:, 512:])
    assert torch.equal(y[0], x[0]), "time zero turns nothing"
    norm = x.double().norm(dim=1)
    assert_within(y.double().norm(dim=1), norm, torch.finfo(torch.float32).eps * norm)


def test_rote_gradients():
    x = torch.randn(6, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ak.rote(x, WINDOW, FRAME, phase_dtype=torch.float64), (x,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ak.rote(torch.zeros(2, 8), WINDOW, FRAME), r"window must be integer \[2\]"),
        (lambda: ak.rote(torch.zeros(6, 8), WINDOW.float(), FRAME), "float32"),
        (lambda: ak.rote(torch.zeros(6, 8), WINDOW, FRAME, rotary_dim=5), "rotary_dim 5 do not fit 8"),
        (lambda: ak.rote(torch.zeros(6, 8), WINDOW, FRAME, phase_dtype=torch.float16), "float16"),
        (
            lambda: ak.rotary(torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.arange(2), torch.ones(4)),
            r"int64.*position_ids",
        ),
        (
            lambda: ak.rotary(torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.zeros(2), torch.ones(4).bfloat16()),
            "cast buffers",
        ),
        (lambda: ak.rotary(torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.zeros(2), torch.arange(4)), "inv_freq is"),
        (lambda: ak.rotary(torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.zeros(2), torch.ones(8)), "inv_freq"),
        (lambda: ak.rotary(torch.zeros(2, 1, 7), torch.zeros(2, 1, 7), torch.zeros(2), torch.ones(3)), "heads of 7"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


TRITON = next(row for row in ak.explain("rotary").rows if row.impl == "triton")
runs_triton = pytest.mark.skipif("not installed" in TRITON.reason, reason=TRITON.reason)


@runs_triton
@pytest.mark.parametrize("largest", [1.0, 100.0, 1e6, 1e8])
def test_sincos_of_the_kernels(largest, device):
    # Every multiple of π/4 nearby decides between two polynomials or two signs.
    from tests.kernels.phases import sincos

    near = torch.linspace(-largest, largest, 999, dtype=torch.float64).div(math.pi / 4).round() * (math.pi / 4)
    angle = torch.cat([near, near + 1e-7, near - 1e-7, (torch.rand(5000, dtype=torch.float64) * 2 - 1) * largest])
    for found, exact in zip(sincos(angle.to(device)), (angle.sin(), angle.cos()), strict=True):
        assert_within(found.cpu(), exact, 2e-7)  # what _triton_math promises


@runs_triton
@pytest.mark.parametrize("phase_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("earlier", [False, True])
def test_rote_phases_of_the_kernel_are_those_of_the_reference_bit_for_bit(phase_dtype, earlier, device):
    from afn_kernels.rote import reference
    from tests.kernels.phases import phases

    window, frame = (
        x.flatten().to(device) for x in torch.meshgrid(torch.arange(60), torch.arange(0, 750, 7), indexing="ij")
    )
    options = {
        "rotary_dim": 256,
        "theta": 1200 / (2 * math.pi) if earlier else 1200.0,
        "period": 1200.0,
        "window_factor": 2 * math.pi if earlier else 1.0,
        "frame_factor": 2 * math.pi,
        "seconds_per_frame": 0.04,
        "frames_per_window": 750,
        "phase_dtype": phase_dtype,
    }
    expected = reference.phases(window, frame, **options)
    assert expected.abs().max() > 40_000
    assert torch.equal(phases(window, frame, **options), expected)


def paged(device, dtype=torch.float32):
    """q, k, v cut from one projection, and a cache of pages full of NaN."""
    qkv = torch.randn(7, 3 + 2 * 2, 16, device=device, dtype=dtype)
    q, k, v = qkv.split((3, 2, 2), 1)
    k_cache, v_cache = torch.full((2, 4, 8, 2, 16), float("nan"), device=device, dtype=dtype)
    slots = torch.tensor([31, 3, -1, 8, 0, 20, 9], device=device)
    cache = {"v": v, "k_cache": k_cache, "v_cache": v_cache, "slots": slots}
    return (q, k, torch.rand(7, device=device) * 100, frequencies(16).float().to(device)), cache


@pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=runs_triton)])
def test_rotary_writes_the_cache(impl, device):
    call, cache = paged(device)
    versions = [cache[name]._version for name in ("k_cache", "v_cache")]
    q, k = ak.rotary(*call, **cache, impl=impl)
    assert all(cache[name]._version > version for name, version in zip(("k_cache", "v_cache"), versions, strict=True))
    for found, expected in zip((q, k), ak.rotary(*call, impl=impl), strict=True):
        assert torch.equal(found, expected)
    for name, new in (("k_cache", k), ("v_cache", cache["v"])):
        expected = torch.full((32, 2, 16), float("nan"), device=device)
        for slot, row in zip(cache["slots"].tolist(), new, strict=True):
            if slot >= 0:
                expected[slot] = row
        assert torch.equal(cache[name].flatten(0, 1).nan_to_num(7.0), expected.nan_to_num(7.0))


@runs_triton
def test_torch_compile_sees_the_write(device):
    call, cache = paged(device)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *args, **kwargs: ak.rotary(*args, **kwargs, impl="triton"), fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad():
        compiled(*call, **cache)
    other = cache | {name: torch.full_like(cache[name], float("nan")) for name in ("k_cache", "v_cache")}
    ak.rotary(*call, **other, impl="triton")
    for name in ("k_cache", "v_cache"):
        assert torch.equal(cache[name].nan_to_num(7.0), other[name].nan_to_num(7.0))


@runs_triton
def test_rotary_with_float64_positions(device):
    (q, k, positions, inv_freq), _ = paged(device)
    angle = positions.double()[:, None] * inv_freq.double() * 1e4
    for found, x in zip(ak.rotary(q, k, positions.double() * 1e4, inv_freq, impl="triton"), (q, k), strict=True):
        a, b = x.double().abs().chunk(2, -1)
        size = (a + b).repeat(1, 1, 2)  # as in qkv_rotary: a sine and a cosine within 2e-7, three roundings
        assert_within(found, complex_rotation(x, angle), (2e-7 + 1.5 * torch.finfo(torch.float32).eps) * size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": None}, "v, k_cache, v_cache given"),
        ({"slots": torch.full((7,), 32)}, "slot 32 is past the 32 rows"),
        ({"slots": torch.zeros(7)}, "slots are torch.float32"),
        ({"v": torch.zeros(7, 3, 16)}, r"v is \(7, 3, 16\)"),
        ({"v": torch.zeros(7, 2, 16, requires_grad=True)}, "no gradient"),
        ({"k_cache": torch.zeros(4, 16, 2, 16)[:, ::2], "v_cache": torch.zeros(4, 8, 2, 8, 2)[..., 0]}, "v_cache is"),
        ({"k_cache": torch.zeros(4, 9, 2, 16)[:, :8]}, "not one run of rows"),
    ],
)
def test_bad_caches(change, message):
    call, cache = paged("cpu")
    with pytest.raises(ValueError, match=message):
        ak.rotary(*call, **(cache | change))
