"""linear_fp8: its reference against sums that are written out, what it refuses, and torch._scaled_mm beside it."""

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _device
from afn_kernels.linear_fp8 import _scaled_mm
from tests.budget import assert_within

FP8 = torch.float8_e4m3fn
PAIRS = {
    "tensor": ("tensor", "tensor"),
    "row": ("row", "row"),
    "tiles": ((1, 128), (128, 128)),
    "blocks": ((1, 128), (1, 128)),
}
SHAPES = [(3, 5, 1), (1, 1, 128), (7, 129, 130), (130, 3, 300)]


def made(device, rows, columns, inner, kind, added=False, seed=0):
    """Codes and scales of rows and columns of several sizes."""
    g, found = torch.Generator().manual_seed(seed), {}
    for name, length, block in (("x", rows, PAIRS[kind][0]), ("w", columns, PAIRS[kind][1])):
        x = torch.randn(length, inner, generator=g) * torch.rand(length, 1, generator=g).mul(4).exp2()
        x *= torch.rand(inner, generator=g).mul(4).exp2()
        found[name], found[f"scale_{name}"] = ak.quantize_fp8(x, block=block, impl="reference")
    if added:
        found["bias"], found["residual"] = torch.randn(columns, generator=g), torch.randn(rows, columns, generator=g)
    return {name: x.to(device) for name, x in found.items()}


def spread(scale, rows, inner, block):
    """The scale of every element."""
    height, width = {"row": (1, inner), "tensor": (rows, inner)}.get(block, block)
    scale = scale.reshape(-(-rows // height), -(-inner // width))
    return scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :inner]


def whole(i, kind):
    """x and w in float64, multiplied by their scales."""
    sides = zip("xw", PAIRS[kind], strict=True)
    return (i[name].double() * spread(i[f"scale_{name}"], *i[name].shape, block).double() for name, block in sides)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(("rows", "columns", "inner"), SHAPES)
def test_the_reference_is_a_product_of_what_codes_and_scales_mean(rows, columns, inner, kind, device):
    i = made(device, rows, columns, inner, kind, added=True)
    x, w = whole(i, kind)
    found = ak.linear_fp8(**i, out_dtype=torch.float32, impl="reference")
    assert found.dtype == torch.float32
    # Every product is exact: sums in any order, a scale of each side, and two additions round.
    size = x.abs() @ w.abs().T + i["bias"].abs() + i["residual"].abs()
    exact = x @ w.T + i["bias"] + i["residual"]
    assert_within(found, exact, (inner + 5) * 2.0**-24 * size)
    assert_within(ak.linear_fp8(**i, out_dtype=torch.float64), exact, 1e-13 * size)


def test_bad_input():
    x, w, one = torch.zeros(3, 256).to(FP8), torch.zeros(5, 256).to(FP8), torch.tensor(1.0)
    row = torch.ones(3, 1), torch.ones(5, 1)
    for call, said in (
        ((x.float(), w.float(), one, one), r"x is torch.float32 \(3, 256\), w \(5, 256\), expected float8_e4m3fn"),
        ((x, w.float(), one, one), "w is torch.float32 on cpu, x is torch.float8_e4m3fn"),
        ((x, w[:, :255], one, one), r"w \(5, 255\), expected float8_e4m3fn \[M, K\] and \[N, K\]"),
        ((x, w, *reversed(row)), r"scales \(5, 1\) and \(3, 1\) of x \(3, 256\) and w \(5, 256\), expected \[\] and"),
        ((x, w, row[0], one), r"scales \(3, 1\) and \(\)"),
        ((x, w, torch.ones(3, 2), torch.ones(2, 2)), r"scales \(3, 2\) and \(2, 2\)"),
        ((x, w, row[0].half(), row[1].half()), "the scales are torch.float16, expected float32"),
        ((x, w, 1.0, one), "scale_x is a float, expected a tensor"),
        ((x, w, *row, torch.ones(4)), r"bias is torch.float32 \(4,\), expected floating \(5,\) of 16 bits"),
        ((x, w, *row, None, torch.ones(5, 3)), r"residual is torch.float32 \(5, 3\), expected floating \(3, 5\)"),
        ((x, w, *row, torch.ones(5).requires_grad_()), "it has no gradient, and bias requires one; detach it"),
    ):
        with pytest.raises(ValueError, match=f"linear_fp8: .*{said}"):
            ak.linear_fp8(*call)
    with pytest.raises(ValueError, match=r"out_dtype is torch\.int8, expected float32"):
        ak.linear_fp8(x, w, *row, out_dtype=torch.int8)
    with torch.no_grad():
        ak.linear_fp8(x, w, *row, torch.ones(5).requires_grad_())


def test_why_scaled_mm_is_not_taken(device):
    """Named, it says why; unnamed, the next implementation runs."""
    i = made(device, 3, 48, 200, "tiles")
    with pytest.raises(ValueError, match=r"multiples of 16|one scale for a tensor alone"):
        ak.linear_fp8(**i, impl="scaled_mm")
    assert ak.explain("linear_fp8", **i).chosen == "reference"
    with pytest.raises(ValueError, match="there is nothing to multiply"):
        ak.linear_fp8(**made(device, 0, 16, 16, "tensor"), impl="scaled_mm")
    with pytest.raises(ValueError, match="float64 is computed by the reference"):
        ak.linear_fp8(**made(device, 4, 16, 16, "tensor"), out_dtype=torch.float64, impl="scaled_mm")


def test_what_an_older_cublas_or_another_gpu_does_not_scale(monkeypatch):
    """PyTorch's own kernel of rows returns bfloat16 with nothing but a bias added, and it has none of blocks."""
    added = ({}, {"out_dtype": torch.float32}, {"bias": torch.float32}, {"residual": torch.bfloat16})

    def reasons(cuda, capability=(9, 0), torch_version="2.9.1", inner=512):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch, "__version__", torch_version)
        with _device.assumed(capability):
            for kind, more in [("tiles", {}), ("blocks", {}), ("tensor", {}), *(("row", one) for one in added)]:
                i = made("meta", 3, 48, inner, kind, added=True)
                given = {name: i[name].to(more[name]) if name in more else None for name in ("bias", "residual")}
                args = i["x"], i["w"], i["scale_x"], i["scale_w"]
                yield _scaled_mm(*args, out_dtype=more.get("out_dtype", torch.bfloat16), **given)

    blocks, rows = "blocks of 128 are for Hopper, by PyTorch from 2.9", "rows in another dtype than bfloat16 are for"
    older = [blocks, blocks, "", "", rows, rows, rows]
    for machine in (("12.8", (9, 0), "2.9.1"), ("12.9", (9, 0), "2.8.0"), (None, (9, 0), "2.9.1")):
        assert all(found.startswith(said) and bool(found) == bool(said)
                   for found, said in zip(reasons(*machine), older, strict=True))  # fmt: skip
    assert not any(reasons("13.0"))
    few = ["K = 256 is 2 blocks of 128, and scales of tiles come by fours", *[""] * 6]
    assert list(reasons("13.0", inner=256)) == few
    found = list(reasons("13.0", (10, 0)))
    assert found[:2] == ["blocks of 128 are for Hopper"] * 2
    assert [bool(one) for one in found[2:]] == [False, False, True, True, True]


IMPLS = ["reference", "scaled_mm"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_added(impl, dtype, device):
    """A bias in the dtype that is returned, in another one, a residual, and both."""
    i = made(device, 5, 48, 64, "tensor", added=True)
    for bias in (dtype, torch.float32, torch.float16):
        for added in (("bias",), ("residual",), ("bias", "residual")):
            given = {name: x for name, x in i.items() if name in added or name not in ("bias", "residual")}
            if "bias" in given:
                given["bias"] = given["bias"].to(bias)
            exact = ak.linear_fp8(**given, out_dtype=torch.float64)
            x, w = whole(i, "tensor")
            room = torch.finfo(dtype).eps * exact.abs() + 2.0**-18 * (x.abs() @ w.abs().T + 10)
            assert_within(ak.linear_fp8(**given, out_dtype=dtype, impl=impl), exact, room)


@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_empty(kind, device):
    for rows, columns in ((0, 16), (5, 0)):
        assert ak.linear_fp8(**made(device, rows, columns, 48, kind)).shape == (rows, columns)
    i = made(device, 5, 16, 0, kind, added=True)
    assert torch.equal(ak.linear_fp8(**i, out_dtype=torch.float32), i["bias"] + i["residual"])


def test_scales_that_are_zero_infinite_or_not_a_number(device):
    i = made(device, 6, 130, 200, "tiles")
    i["w"][3] = 0
    i["scale_x"][0] = 0
    i["scale_x"][1, 1], i["scale_x"][2, 0] = float("inf"), float("nan")
    i["x"][4, 199] = float("nan")
    found = ak.linear_fp8(**i, out_dtype=torch.float32).cpu()
    assert not found[0].any()
    assert found[1].isinf()[torch.arange(130) != 3].all()
    assert found[[1, 2, 4]][:, 3].isnan().all()
    assert found[[2, 4]].isnan().all()
    assert found[[3, 5]].isfinite().all()
