"""csrc/cuda/qkv_rotary.cu and its reference: on a CPU its blocks run as threads, with --device cuda on the GPU."""

from contextlib import nullcontext

import pytest
import torch

import afn_kernels as ak
from afn_kernels._library import BOUNDARIES
from afn_kernels.qkv_rotary import qkv_rotary
from afn_kernels.qkv_rotary.boundary import qkv_rotary as launch
from tests.budget import assert_within, assert_within_budget, lost
from tests.cuda import emulated
from tests.kernels.harness import poisoned

FP8 = torch.float8_e4m3fn
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def made(device, dtype, tokens=5, heads=7, kv_heads=2, width=16, rows=40, pages=0, bias=True):
    """Positions in no order and not whole; the last token is not kept."""
    columns = (heads + 2 * kv_heads) * width
    shape = (pages, rows // pages, kv_heads, width) if pages else (rows, kv_heads, width)
    slots = torch.randperm(rows)[:tokens]
    slots[-1] = -1
    found = {
        "qkv": torch.randn(tokens, columns).to(dtype),
        "positions": torch.rand(tokens) * 1e5,
        "inv_freq": 10_000.0 ** (-torch.arange(0, width, 2) / width),
        "k_cache": torch.full(shape, 7.0, dtype=dtype),
        "v_cache": torch.full(shape, 7.0, dtype=dtype),
        "slots": slots,
    }
    if bias:
        found["bias"] = torch.randn(columns).to(dtype)
    return {name: x.to(device) for name, x in found.items()}


def run(i, impl="cuda", *, backwards=False):
    """q and the caches, which are the call's own."""
    i = i | {name: i[name].clone() for name in ("k_cache", "v_cache")}
    with emulated(backwards=backwards) if i["qkv"].device.type == "cpu" else nullcontext(), poisoned():
        q = qkv_rotary(**i, impl=impl)
    return {"q": q} | {name: i[name] for name in ("k_cache", "v_cache")}


def wide(i):
    return {name: x.double() if x.is_floating_point() and "scale" not in name else x for name, x in i.items()}


SHAPES = {
    "28:4 heads": {"tokens": 2, "heads": 28, "kv_heads": 4, "width": 128},
    "pages": {"pages": 8},
    "more tokens than blocks": {"tokens": 30, "heads": 3, "kv_heads": 1},
    "width 12, no bias": {"width": 12, "bias": False},
    "width 256": {"tokens": 1, "heads": 1, "kv_heads": 1, "width": 256, "rows": 3},
    "no tokens": {"tokens": 1, "heads": 2, "kv_heads": 1},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_within_budget(name, dtype, device):
    def draw():
        """Inputs, and what they give in their own precision and in float64."""
        i = made(device, dtype, **SHAPES[name])
        if name == "no tokens":
            i |= {x: i[x][:0] for x in ("qkv", "positions", "slots")}
        return i, run(i, "reference"), run(wide(i), "reference")

    i, same, oracle = draw()
    others = [draw()[1:] for _ in range(8)]
    found = run(i)
    for x in found:
        elsewhere = [lost([one[x]], exact[x])[0] for one, exact in others]
        assert_within_budget(found[x], [same[x]], oracle[x], elsewhere=elsewhere, name=x)
    untouched = torch.ones(40 if found["k_cache"].dim() == 4 else len(found["k_cache"]), dtype=torch.bool)
    untouched[i["slots"][i["slots"] >= 0].cpu()] = False
    for x in ("k_cache", "v_cache"):
        assert (found[x].flatten(0, -3)[untouched.to(device)] == 7.0).all()


def test_angles_are_exact_products(device):
    """Sines and cosines within 2e-7 of those of the product that no float32 holds, up to 10⁵ turns away."""
    i = made(device, torch.float32, tokens=20, bias=False)
    found, oracle = run(i)["q"], run(wide(i), "reference")["q"]
    a, b = i["qkv"].unflatten(1, (-1, 16))[:, :7].double().abs().chunk(2, -1)
    size = (a + b).repeat(1, 1, 2)  # three roundings of at most eps / 2 of it, beside the sine and the cosine
    assert_within(found, oracle, (2e-7 + 1.5 * torch.finfo(torch.float32).eps) * size)


@pytest.mark.parametrize("pages", [0, 8])
def test_the_reference_is_a_bias_and_rotary(pages):
    i = wide(made("cpu", torch.float32, pages=pages))
    found = run(i, "reference")
    q, k, v = (i["qkv"] + i["bias"]).unflatten(1, (11, 16)).split((7, 2, 2), 1)
    caches = {name: i[name].clone() for name in ("k_cache", "v_cache")}
    q, _ = ak.rotary(q, k, i["positions"], i["inv_freq"], v=v, slots=i["slots"], impl="reference", **caches)
    for name, x in (caches | {"q": q}).items():
        assert torch.equal(found[name], x)


@pytest.mark.parametrize("scales", ["none", "tensor", "head"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_caches(scales, dtype, device):
    """Half a step of float8 for the entry, and what float32 loses before it."""
    i = made(device, dtype, heads=1)
    i |= {name: i[name].to(FP8) for name in ("k_cache", "v_cache")}
    k_scale, v_scale = torch.ones(2, device=device), torch.ones(2, device=device)
    if scales != "none":
        i["k_scale"], i["v_scale"] = torch.rand(2, 2 if scales == "head" else 1, device=device) / 20 + 0.02
        k_scale, v_scale = k_scale * i["k_scale"], v_scale * i["v_scale"]
    found = run(i)
    plain = {name: x for name, x in wide(i).items() if "scale" not in name}
    oracle = run(plain | {name: plain[name].double() for name in ("k_cache", "v_cache")}, "reference")
    for name, scale in (("k_cache", k_scale), ("v_cache", v_scale)):
        kept = i["slots"][:-1]
        entry, exact = found[name].double()[kept], oracle[name][kept] / scale.double()[:, None]
        exact = exact.clamp(-448, 448)
        size = exact.abs().clamp(min=2.0**-6).log2().floor().exp2()
        assert ((entry - exact).abs() <= size / 16 + 2e-6 * exact.abs().max()).all()
        assert (found[name].float()[i["slots"].max() + 1 :] == 7.0).all()


def test_every_float16_becomes_the_float8_that_torch_takes(device):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    i = made(device, torch.float16, tokens=64, heads=1, kv_heads=4, width=256, rows=64, bias=False)
    i["qkv"][:, -1024:] = bits.view(64, 1024).to(device)
    i |= {name: i[name].to(FP8) for name in ("k_cache", "v_cache")} | {"slots": torch.arange(64, device=device)}
    found, expected = (run(i, impl)["v_cache"].view(torch.uint8) for impl in ("cuda", "reference"))
    number = ~bits.isnan().view(64, 4, 256).to(device)  # the sign of NaN is nobody's promise
    assert torch.equal(found[number], expected[number])
    assert ((found[~number] & 127) == 127).all()


def test_strided_inputs_and_determinism(device):
    i = made(device, torch.bfloat16)
    expected = run(i)
    for name, x in run(i, backwards=True).items():
        assert torch.equal(x, expected[name])
    k_cache, v_cache = torch.stack([i["k_cache"]] * 3, 1)[:, 1], torch.cat([i["v_cache"]] * 2, 2)[..., :16]
    far = torch.full((5, 200), float("nan"), device=device).to(i["qkv"])
    far[:, 2:178] = i["qkv"]
    positions = torch.stack((i["positions"], i["positions"]), 1)[:, 0]
    slots = torch.stack((i["slots"], i["slots"]), 1)[:, 0]
    i |= {"qkv": far[:, 2:178], "positions": positions, "slots": slots}
    with emulated() if device.type == "cpu" else nullcontext():
        q = qkv_rotary(**(i | {"k_cache": k_cache, "v_cache": v_cache}), impl="cuda")
    for name, x in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        assert torch.equal(x, expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bias_may_begin_anywhere(dtype, device):
    """A GPU reads two elements at once, and at an odd one it would end the process's use of it."""
    i = made(device, dtype)
    expected = run(i)
    odd = torch.cat((i["bias"][:1], i["bias"]))[1:]
    assert odd.data_ptr() % (2 * odd.element_size())
    found = run(i | {"bias": odd})
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_a_slot_past_the_cache_writes_nothing(device):
    i = made(device, torch.float16)
    i["slots"] = torch.tensor([40, 10**12, -1, -(10**12), 3], device=device)  # a GPU's slots are not looked at
    i |= {"k_scale": None, "v_scale": None}
    with emulated() if device.type == "cpu" else nullcontext():
        launch(**i)
    for name in ("k_cache", "v_cache"):
        assert (i[name][torch.arange(40) != 3] == 7.0).all()
        assert (i[name][3] != 7.0).any()


def test_only_q_has_a_gradient():
    i = made("cpu", torch.float32)
    i["qkv"].requires_grad_()
    with emulated(), pytest.raises(ValueError, match="it is for decoding and has no gradient; the reference has that"):
        qkv_rotary(**i, impl="cuda")
    qkv_rotary(**i).sum().backward()
    assert i["qkv"].grad[:, : 7 * 16].any()
    assert not i["qkv"].grad[:, 7 * 16 :].any()
    assert not i["k_cache"].requires_grad


def test_a_write_is_seen_by_autograd(device):
    i = made(device, torch.float16)
    before = i["k_cache"]._version
    with emulated() if device.type == "cpu" else nullcontext():
        qkv_rotary(**i, impl="cuda")
    assert i["k_cache"]._version > before


def test_the_registered_op(device):
    i = made(device, torch.bfloat16, tokens=2, heads=1, kv_heads=1)
    args = *(i[name] for name in ("qkv", "bias", "positions", "inv_freq", "slots")), None, None
    args += i["k_cache"], i["v_cache"]
    with emulated() if device.type == "cpu" else nullcontext():
        for question in ("test_schema", "test_faketensor"):
            torch.library.opcheck(BOUNDARIES["qkv_rotary"].op, args, test_utils=question)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(5, 177)}, r"177 columns are no \(Hq \+ 2 · 2\) · 16"),
        ({"qkv": torch.zeros(5, 64)}, r"64 columns are no \(Hq \+ 2 · 2\) · 16"),
        ({"v_cache": torch.zeros(41, 2, 16)}, r"v_cache is \(41, 2, 16\), k_cache is \(40, 2, 16\)"),
        ({"positions": torch.zeros(4)}, r"positions are torch.float32 \(4,\) for 5 tokens"),
        ({"inv_freq": torch.zeros(9)}, r"inv_freq has shape \(9,\), expected \(8,\)"),
        ({"bias": torch.zeros(16)}, r"bias has shape \(16,\), expected \(176,\)"),
        ({"k_scale": torch.ones(3)}, r"k_scale is torch.float32 \(3,\), expected float32 of 1 or 2"),
        ({"slots": torch.zeros(5, dtype=torch.int32)}, r"slots are torch.int32 \(5,\) on cpu, expected int64"),
        ({"slots": torch.tensor([0, 1, 2, 3, 40])}, "slot 40 is past the 40 rows of the cache"),
        ({"k_cache": torch.zeros(2, 16, 40).permute(2, 0, 1)}, r"k_cache of strides \(1, 640, 40\) is not one run"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        qkv_rotary(**(made("cpu", torch.float32) | change))
