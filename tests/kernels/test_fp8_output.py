"""Norm and activation that leave in FP8: the codes and scales of ``quantize_fp8`` of what they return otherwise."""

import pytest
import torch

import afn_kernels as ak
from afn_kernels.rms_norm.boundary import FORWARD_FP8 as NORM
from afn_kernels.swiglu.boundary import FORWARD_FP8 as GATED

FP8 = torch.float8_e4m3fn
BLOCKS = ["row", (1, 128)]


def given(rows, width, dtype, device):
    """Rows of very different sizes, one of zeros and one that is not finite; elements with gaps between rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2 * width, generator=generator) * torch.logspace(-3, 3, rows)[:, None]
    x[1:2] = 0
    x[2:3, 5] = float("nan")
    return x.to(dtype).to(device)[:, :width]


def calls(rows, width, dtype, device):
    x, weight = given(rows, width, dtype, device), torch.rand(width).to(device)
    residual = given(rows, width, torch.float32, device).flip(0)
    yield "plain", lambda **more: ak.rms_norm(x, weight.to(dtype), **more)
    yield "float32 stream", lambda **more: ak.rms_norm(x, weight, residual=residual, **more)
    yield "offset", lambda **more: ak.rms_norm(x, weight.to(dtype), offset=1.0, **more)
    yield "no weight", lambda **more: ak.rms_norm(x, **more)
    yield "gated", lambda **more: ak.swiglu(x, x.flip(0), **more)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("rows", "width"), [(5, 300), (1, 37), (3, 2200), (0, 128)])
def test_every_bit_is_that_of_two_calls(rows, width, block, impl, device):
    for dtype in (torch.bfloat16, torch.float32):
        for name, call in calls(rows, width, dtype, device):
            if rows == 0 and name != "gated" and impl == "reference":
                continue
            codes, scale, *h = call(out_dtype=FP8, block=block, impl=impl)
            plain = call(impl=impl)
            y, *same = plain if isinstance(plain, tuple) else (plain,)
            expected, expected_scale = ak.quantize_fp8(y, block=block, impl=impl)
            assert torch.equal(codes.view(torch.uint8), expected.view(torch.uint8)), name
            torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)
            assert scale.stride() == expected_scale.stride(), name
            assert len(h) == len(same)
            torch.testing.assert_close(h, same, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [0, 128])
def test_schemas(width, device):
    x = torch.randn(3, 48, device=device)
    norm = (x, torch.rand(48, device=device), x, 1e-6, None, width)
    torch.library.opcheck(NORM.op, norm, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(GATED.op, (x, x, width), test_utils=("test_schema", "test_faketensor"))


def test_mistakes_are_answered_in_one_line(device):
    x, weight = torch.randn(3, 16, device=device), torch.rand(16, device=device)
    for call in (lambda **more: ak.rms_norm(x, weight, **more), lambda **more: ak.swiglu(x, x, **more)):
        with pytest.raises(ValueError, match=r"out_dtype is torch.float16, expected torch.float8_e4m3fn or None"):
            call(out_dtype=torch.float16)
        with pytest.raises(ValueError, match=r"block 'tensor', expected one of 'row', \(1, 128\)"):
            call(out_dtype=FP8, block="tensor")
    with pytest.raises(ValueError, match=r"x is \(2, 3, 16\), expected \[T, D\]"):
        ak.rms_norm(torch.randn(2, 3, 16, device=device), out_dtype=FP8)
    with pytest.raises(ValueError, match="codes have no gradient, and an argument requires one; detach it"):
        ak.rms_norm(x, weight.requires_grad_(), out_dtype=FP8)
    with torch.no_grad():
        ak.rms_norm(x, weight, out_dtype=FP8)
