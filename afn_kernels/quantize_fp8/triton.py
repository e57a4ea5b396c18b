"""A program per row, or per tile of 128 x 128; where a block is wider than a tile, one pass more for its maximum."""

import torch
import triton
import triton.language as tl

from afn_kernels._triton_fp8 import magnitude, scale_of
from afn_kernels.quantize_fp8.config import TILE, choose
from afn_kernels.quantize_fp8.layout import scale_layout

BLOCK = 128


@triton.jit(do_not_specialize=["rows"])
def row_kernel(x, out, scale, x_stride, rows, K: tl.constexpr, BLOCK_K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    m_col = column < K
    b_x = tl.load(x + row * x_stride + column, mask=m_col, other=0.0).to(tl.float32)
    b_scale = scale_of(tl.max(magnitude(b_x)))
    tl.store(scale + row, b_scale)
    tl.store(out + row * K + column, (b_x * tl.div_rn(1.0, b_scale)).to(tl.float8e4nv), mask=m_col)


@triton.jit
def tile_of(columns, BLOCK: tl.constexpr):
    """Row and column of this program's tile. One axis of programs: the others end at 65,535."""
    across = tl.cdiv(columns, BLOCK)
    return (tl.program_id(0) // across).to(tl.int64), (tl.program_id(0) % across).to(tl.int64)


@triton.jit
def load_tile(x, x_stride, rows, columns, BLOCK: tl.constexpr):
    tile_row, tile_column = tile_of(columns, BLOCK)
    row, column = tile_row * BLOCK + tl.arange(0, BLOCK), tile_column * BLOCK + tl.arange(0, BLOCK)
    m_tile = (row < rows)[:, None] & (column < columns)[None, :]
    b_x = tl.load(x + row[:, None] * x_stride + column[None, :], mask=m_tile, other=0.0).to(tl.float32)
    return row, column, m_tile, b_x


@triton.jit(do_not_specialize=["rows"])
def maximum_kernel(x, largest, x_stride, rows, columns, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """Largest magnitude of every column, or of everything; a maximum does not depend on the order of arrival."""
    _, column, _, b_x = load_tile(x, x_stride, rows, columns, BLOCK)
    b_largest = tl.max(magnitude(b_x), 0)
    if WHOLE:
        tl.atomic_max(largest, tl.max(b_largest), sem="relaxed")
    else:
        tl.atomic_max(largest + column, b_largest, mask=column < columns, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "scale_row", "scale_column"])
def tile_kernel(
    x, out, scale, largest, x_stride, rows, columns, scale_row, scale_column,
    MODE: tl.constexpr, TRANSPOSE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """MODE: what shares a scale: "tile", "row" or "column" of a tile, or "known": of the matrix, of which ``largest``
    has the maximum, of everything ("whole") or of every column ("columns"). ``scale_row`` is the scales' stride along
    the rows of x."""
    if ALIGNED:
        rows = rows // 16 * 16  # as it is; the compiler sees that 16 bytes at a time can be stored
    row, column, m_tile, b_x = load_tile(x, x_stride, rows, columns, BLOCK)
    tile_row, tile_column = tile_of(columns, BLOCK)
    if MODE == "tile":
        b_scale = scale_of(tl.max(tl.max(magnitude(b_x), 1), 0))
        tl.store(scale + tile_row * scale_row + tile_column * scale_column, b_scale)
        b_y = b_x * tl.div_rn(1.0, b_scale)
    elif MODE == "row":
        b_scale = scale_of(tl.max(magnitude(b_x), 1))
        tl.store(scale + row * scale_row + tile_column * scale_column, b_scale, mask=row < rows)
        b_y = b_x * tl.div_rn(1.0, b_scale)[:, None]
    elif MODE == "column":
        b_scale = scale_of(tl.max(magnitude(b_x), 0))
        tl.store(scale + tile_row * scale_row + column * scale_column, b_scale, mask=column < columns)
        b_y = b_x * tl.div_rn(1.0, b_scale)[None, :]
    elif MODE == "columns":
        m_col = column < columns
        b_scale = scale_of(tl.load(largest + column, mask=m_col, other=0))
        tl.store(scale + column, b_scale, mask=m_col & (tile_row == 0))
        b_y = b_x * tl.div_rn(1.0, b_scale)[None, :]
    else:
        b_scale = scale_of(tl.load(largest))
        tl.store(scale, b_scale, mask=(tile_row == 0) & (tile_column == 0))
        b_y = b_x * tl.div_rn(1.0, b_scale)
    b_out = b_y.to(tl.float8e4nv)  # nearest, ties to even, saturating
    side = tl.arange(0, BLOCK)  # but in FAR tiles offsets are below 2**31: half the registers of 64-bit ones
    if FAR:
        side = side.to(tl.int64)
    if TRANSPOSE:
        p_out = out + tile_column * BLOCK * rows + tile_row * BLOCK
        tl.store(p_out + side[:, None] * rows + side[None, :], tl.trans(b_out), mask=tl.trans(m_tile))
    else:
        p_out = out + tile_row * BLOCK * columns + tile_column * BLOCK
        tl.store(p_out + side[:, None] * columns + side[None, :], b_out, mask=m_tile)


def forward(x: torch.Tensor, height: int, width: int, transpose: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K], adjacent within a row -> the codes of x or of its transpose, and the scales."""
    rows, columns = x.shape
    shape = (columns, rows) if transpose else (rows, columns)
    out = torch.empty(shape, dtype=torch.float8_e4m3fn, device=x.device)
    sizes, strides = scale_layout(*shape, height, width)
    scale = torch.empty_strided(sizes, strides, dtype=torch.float32, device=x.device)
    if not x.numel():
        return out, scale.fill_(2.0**-126)
    if (height, width, transpose) == (1, 0, False):
        block = triton.next_power_of_2(columns)
        row_kernel[(rows,)](
            x, out, scale, x.stride(0), rows, K=columns, BLOCK_K=block,
            num_warps=choose(columns).warps,
        )  # fmt: skip
        return out, scale
    grid = (triton.cdiv(columns, BLOCK) * triton.cdiv(rows, BLOCK),)
    largest = None
    if not width:
        largest = torch.zeros(columns if height else 1, dtype=torch.int32, device=x.device)
        maximum_kernel[grid](
            x, largest, x.stride(0), rows, columns, WHOLE=not height, BLOCK=BLOCK, num_warps=TILE.warps
        )  # fmt: skip
        mode, (down, across) = "columns" if height else "whole", (0, 0)
    else:
        mode = "tile" if height == width else "column" if transpose else "row"
        down, across = reversed(strides) if transpose else strides
    tile_kernel[grid](
        x, out, scale, largest, x.stride(0), rows, columns, down, across,
        MODE=mode, TRANSPOSE=transpose, ALIGNED=transpose and rows % 16 == 0, BLOCK=BLOCK,
        FAR=max(shape) >= 2**31 // BLOCK, num_warps=TILE.warps,
    )  # fmt: skip
    return out, scale
