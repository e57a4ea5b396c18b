"""bfloat16 and FP8 as kernels have them in the tests, against PyTorch's: in the interpreter, and unchanged on a GPU."""

import pytest
import torch
import triton
import triton.language as tl

from tests.budget import assert_within

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities and NaN
BF16 = torch.bfloat16
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@triton.jit
def operate(a, b, out, NAME: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(a + o), tl.load(b + o)
    if NAME == "add":
        z = x + y
    elif NAME == "sub":
        z = x - y
    elif NAME == "mul":
        z = x * y
    elif NAME == "div":
        z = x / y
    elif NAME == "maximum":
        z = tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "minimum":
        z = tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)
    elif NAME == "lt":
        z = x < y
    elif NAME == "le":
        z = x <= y
    elif NAME == "gt":
        z = x > y
    elif NAME == "ge":
        z = x >= y
    elif NAME == "eq":
        z = x == y
    elif NAME == "ne":
        z = x != y
    elif NAME == "where":
        z = tl.where(x < y, x * 0.3, 1.0 - y)
    else:
        z = tl.abs(x) + (-y)
    tl.store(out + o, z.to(out.dtype.element_ty))


OTHERS = {
    "where": lambda x, y: torch.where(x < y, x * torch.tensor(0.3, dtype=BF16), 1.0 - y),
    "abs": lambda x, y: x.abs() + (-y),
}
OPERATIONS = ("add", "sub", "mul", "div", "maximum", "minimum", "lt", "le", "gt", "ge", "eq", "ne", *OTHERS)
BLOCK = 4096


def patterns(dtype: torch.dtype, device, count: int = 16 * BLOCK) -> torch.Tensor:
    """Numbers of any bits, near ones and far ones, subnormal ones, both zeros, infinities and NaN."""
    width = torch.iinfo(torch.int16 if dtype == BF16 else torch.int32)
    bits = torch.randint(width.min, width.max + 1, (count,), dtype=torch.int64).to(getattr(torch, width.dtype))
    x = bits.view(dtype)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40, 3.3895e38], dtype=dtype)
    near = torch.randn(count // 2).to(dtype)
    return torch.cat((special.repeat(8), near, x))[torch.randperm(count)].to(device)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit, but for the bits of NaN."""
    assert found.dtype == expected.dtype
    wrong = found.view(torch.uint8) != expected.view(torch.uint8)
    wrong = wrong.view(len(found), -1).any(1) & ~(found.isnan() & expected.isnan())
    assert not wrong.any(), (found[wrong][:5], expected[wrong][:5])


@pytest.mark.parametrize("name", OPERATIONS)
def test_bfloat16_is_computed_as_pytorch_does(name, device):
    a, b = patterns(BF16, device), patterns(BF16, device)
    b[: BLOCK // 4] = a[: BLOCK // 4]
    expected = OTHERS[name](a, b) if name in OTHERS else getattr(torch, name)(a, b)
    out = torch.empty_like(expected, dtype=torch.int8 if expected.dtype == torch.bool else BF16)
    operate[(len(a) // BLOCK,)](a, b, out, NAME=name, BLOCK=BLOCK)
    same(out if out.dtype == BF16 else out.bool(), expected)


@triton.jit
def convert(x, y, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, tl.load(x + o).to(y.dtype.element_ty))


def converted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.empty_like(x, dtype=dtype)
    convert[(len(x) // BLOCK,)](x, y, BLOCK=BLOCK)
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_bfloat16_converted(dtype, device):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(BF16)
    same(converted(x, dtype), x.to(dtype))
    there = x if dtype == torch.float32 else x.where((x.abs() < 60000) & (x.abs() > 1e-4), 1.0)
    same(converted(there.to(dtype), BF16), there)


def test_float32_to_bfloat16_is_to_nearest_and_ties_go_to_even(device):
    x = patterns(torch.float32, device)
    halves = (patterns(torch.float32, device).view(torch.int32) & -0x8000 | 0x8000).view(torch.float32)
    for numbers in (x, halves):
        same(converted(numbers, BF16), numbers.to(BF16))


def test_integers_and_bfloat16(device):
    x = torch.randint(-(2**31), 2**31, (BLOCK,)).to(torch.int32).to(device)
    same(converted(x, BF16), x.to(BF16))
    near = torch.randn(BLOCK, device=device).mul(1000).to(BF16)
    assert torch.equal(converted(near, torch.int32), near.to(torch.int32))


@pytest.mark.parametrize("dtype", FP8, ids=str)
@pytest.mark.parametrize("wide", [torch.float32, torch.float16, BF16], ids=str)
def test_every_fp8_there_and_back(dtype, wide, device):
    codes = torch.arange(256, dtype=torch.uint8, device=device).view(dtype)
    x = codes.view(torch.uint8).repeat(BLOCK // 256).view(dtype)
    same(converted(x, wide)[:256], codes.to(wide))
    finite = codes.float().isfinite().repeat(BLOCK // 256)
    found, expected = (y.view(torch.uint8)[finite] for y in (converted(x.to(wide), dtype), x))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", FP8, ids=str)
def test_fp8_is_to_nearest_and_saturates(dtype, device):
    largest = torch.finfo(dtype).max
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    values = values[values.isfinite()].unique()
    halves = (values[1:] + values[:-1]) / 2
    x = torch.cat((torch.randn(BLOCK) * 3, torch.rand(BLOCK) * 2 * largest - largest, halves.repeat(20)))[: 3 * BLOCK]
    x = torch.nn.functional.pad(x, (0, -len(x) % BLOCK)).to(device)
    same(converted(x, dtype).float(), x.to(dtype).float())
    above = torch.full((BLOCK,), 1.0, device=device)
    above[:4] = torch.tensor([torch.inf, -torch.inf, 1e6, torch.nan])
    found = converted(above, dtype).float()[:4].tolist()
    assert found[:3] == [largest, -largest, largest]
    assert found[3] != found[3]


@triton.jit
def multiply(a, b, out, WIDTH: tl.constexpr, TYPE: tl.constexpr):
    o = tl.arange(0, WIDTH)
    p = o[:, None] * WIDTH + o[None, :]
    b_out = tl.dot(tl.load(a + p).to(TYPE), tl.trans(tl.load(b + p)).to(TYPE))
    tl.store(out + p, b_out)


def test_products_of_bfloat16_add_up_in_float32(device):
    width = 64
    a, b = (torch.randn(width, width, device=device).to(BF16) for _ in range(2))
    out = torch.empty(width, width, device=device)
    multiply[(1,)](a, b, out, WIDTH=width, TYPE=tl.bfloat16)
    exact = a.double() @ b.double().T
    # Products of 8 bits are exact in 24; each of the additions rounds by half a step of at most the sum of magnitudes.
    bound = width * torch.finfo(torch.float32).eps / 2 * (a.double().abs() @ b.double().abs().T)
    assert_within(out, exact, bound)


@triton.jit
def add_up(x, out, WIDTH: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, WIDTH))).to(tl.float32))


def test_a_sum_of_bfloat16_is_refused(device):
    if device.type == "cuda":
        pytest.skip("a compiler takes it")
    with pytest.raises(Exception, match="reduction of bf16: kernels convert to float32 first"):
        add_up[(1,)](torch.ones(16, dtype=BF16), torch.empty(1), WIDTH=16)
