"""quantize_fp8 against its reference, bit by bit, and against what its docstring promises."""

import pytest
import torch

import afn_kernels as ak
from tests.budget import assert_within

FP8 = torch.float8_e4m3fn
BLOCKS = ["row", "tensor", (1, 128), (128, 128)]
IMPLS = ["triton", "reference"]


def bits(x):
    return x.view(torch.uint8)


def spread(x, scale, block, transpose=False):
    """The scale of every element of the result."""
    rows, columns = reversed(x.shape) if transpose else x.shape
    height, width = {"row": (1, columns), "tensor": (rows, columns)}.get(block, block)
    scale = scale.reshape(-(-rows // height), -(-columns // width))
    return scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (63, 200), (130, 128), (1, 1000), (0, 16)])
def test_every_bit_is_the_references(rows, columns, block, transpose, device):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = (torch.randn(rows, columns) * torch.logspace(-4, 2, columns)).to(dtype).to(device)
        for y in (x, x.repeat(1, 2)[:, :columns], x.T.contiguous().T):  # rows and elements with gaps
            found, scale = ak.quantize_fp8(y, block=block, transpose=transpose, impl="triton")
            expected, expected_scale = ak.quantize_fp8(x, block=block, transpose=transpose, impl="reference")
            assert torch.equal(bits(found), bits(expected))
            assert torch.equal(scale, expected_scale)
            assert scale.stride() == expected_scale.stride()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("block", BLOCKS)
def test_error_is_half_a_step(impl, block, device):
    x = torch.randn(150, 260, device=device)
    found, scale = ak.quantize_fp8(x, block=block, impl=impl)
    scale = spread(x, scale, block)
    back = found.float() * scale
    assert ((back - x).abs() <= torch.maximum(x.abs() * 2.0**-4, scale * 2.0**-10) * (1 + 1e-5)).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_all_codes_come_back(impl, device):
    """A row with 448 in it has a scale of 1."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    codes = codes[(codes & 0x7F) != 0x7F]
    found, scale = ak.quantize_fp8(codes.view(FP8).float()[None], impl=impl)
    assert scale.item() == 1
    assert torch.equal(bits(found)[0], codes)


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_even_and_neighbours_of_ties_do_not(impl, device):
    values = torch.arange(127, dtype=torch.uint8).view(FP8).float()  # 0 to 448, subnormals first
    middle = (values[1:] + values[:-1]) / 2
    even = torch.arange(127, dtype=torch.uint8)
    even = torch.where(even[:-1] % 2 == 0, even[:-1], even[1:])
    below, above = (torch.nextafter(middle, torch.tensor(end)) for end in (0.0, 448.0))
    for x, expected in ((middle, even), (below, torch.arange(126)), (above, torch.arange(1, 127))):
        for sign in (1, -1):
            row = torch.cat((x * sign, torch.tensor([448.0])))[None].to(device)
            found, scale = ak.quantize_fp8(row, impl=impl)
            assert scale.item() == 1
            assert torch.equal(bits(found)[0, :-1].cpu(), (expected + (128 if sign < 0 else 0)).to(torch.uint8))


@pytest.mark.parametrize("impl", IMPLS)
def test_extremes_saturate_zeros_stay_and_what_is_not_finite_shows(impl, device):
    x = torch.ones(7, 40)
    x[0] = 0
    x[1] = 1e-44
    x[2] = 3.4e38
    x[3] = torch.linspace(-1e-38, 1e-38, 40)
    x[4, 3] = float("nan")
    x[5, 3] = -float("inf")
    found, scale = ak.quantize_fp8(x.to(device), impl=impl)
    back = (found.float() * scale).cpu()
    assert not back[0].any()
    assert (scale[:2] == 2.0**-126).all()
    assert_within(back[2] / 3.4e38, torch.ones(40), 2 * torch.finfo(torch.float32).eps)
    assert ((back[3] - x[3]).abs() <= 2.0**-126).all()
    assert back[4:6].isnan().all()
    assert torch.equal(back[6], torch.ones(40))


@pytest.mark.parametrize("impl", IMPLS)
def test_product(impl, device):
    """Rows against rows; by torch._scaled_mm where the device has it, which for a CPU is one scale per tensor."""
    x, y = torch.randn(32, 64, device=device), torch.randn(48, 64, device=device)
    block = "row" if device.type == "cuda" else "tensor"
    (a8, sa), (b8, sb) = (ak.quantize_fp8(z, block=block, impl=impl) for z in (x, y))
    found = torch._scaled_mm(a8, b8.T, scale_a=sa, scale_b=sb.T if sb.dim() else sb, out_dtype=torch.bfloat16)
    a, b = a8.double() * sa, b8.double() * sb
    exact = a @ b.T
    # One unit in the last place of bfloat16, and 64 products that are added in float32, in any order.
    assert_within(found, exact, 2.0**-7 * exact.abs() + 64 * 2.0**-24 * (a.abs() @ b.abs().T))
    # Each factor is within 2⁻⁴ of itself.
    assert_within(exact, x.double() @ y.double().T, (2.0**-3 + 2.0**-8) * (x.abs() @ y.abs().T))


@pytest.mark.parametrize(("block", "transpose"), [("row", False), ("tensor", True), ((128, 128), True)])
def test_operator_and_one_graph_for_every_length(block, transpose, device):
    import torch._dynamo.testing

    from afn_kernels.quantize_fp8 import BLOCKS
    from afn_kernels.quantize_fp8.boundary import FORWARD

    torch.library.opcheck(FORWARD.op, (torch.randn(5, 48, device=device), *BLOCKS[block], transpose))
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    call = lambda x: ak.quantize_fp8(x, block=block, transpose=transpose, impl="triton")  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=graphs)
    for rows in (200, 208, 300):  # a size of 1 would be a graph of its own, and so would a single block be
        x = torch.randn(rows, 48, device=device)
        (found, scale), (expected, expected_scale) = compiled(x), call(x)
        assert torch.equal(bits(found), bits(expected))
        assert torch.equal(scale, expected_scale)
    assert graphs.frame_count == 1


def test_bad_input():
    with pytest.raises(ValueError, match=r"x is torch.float32 \(2,\), expected a floating \[M, K\]"):
        ak.quantize_fp8(torch.ones(2))
    with pytest.raises(ValueError, match=r"block \(2, 2\), expected one of 'row'"):
        ak.quantize_fp8(torch.ones(2, 2), block=(2, 2))
    with pytest.raises(ValueError, match="it has no gradient"):
        ak.quantize_fp8(torch.ones(2, 2, requires_grad=True), impl="triton")


def test_offsets_of_a_far_tile_are_wide(monkeypatch):
    """From 2²⁴ rows on, where 128 of a transposed tile are 2³¹ apart; asked of tensors without memory."""
    triton = pytest.importorskip("afn_kernels.quantize_fp8.triton")
    seen = []

    class Launch:
        def __getitem__(self, grid):
            return lambda *args, **options: seen.append(options["FAR"])

    monkeypatch.setattr(triton, "tile_kernel", Launch())
    for rows in (2**24 - 16, 2**24):
        triton.forward(torch.empty(rows, 256, device="meta"), 128, 128, True)
    assert seen == [False, True]
