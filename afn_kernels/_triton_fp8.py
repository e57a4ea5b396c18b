"""Scales and codes of FP8 in Triton's kernels."""

import triton
import triton.language as tl


@triton.jit
def magnitude(b_x):
    """|x| as its float32 bits: as integers they are in the order of the values, with NaN above infinity."""
    return b_x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(b_bits):
    """The scale of a largest magnitude. NaN passes, though a maximum might drop it."""
    b_scale = tl.div_rn(b_bits.to(tl.float32, bitcast=True), 448.0)
    return tl.where(b_scale < 1.1754943508222875e-38, 1.1754943508222875e-38, b_scale)


@triton.jit
def store_quantised(b_y, codes, scale, row, rows, first, D: tl.constexpr, BLOCK_D: tl.constexpr, LINES: tl.constexpr):
    """Codes of a row's float32 values from column ``first`` on, 0 from D on, and their scale; with LINES that of each
    128 of them."""
    column = first + tl.arange(0, BLOCK_D)
    if LINES:
        b_lines = tl.reshape(b_y, [BLOCK_D // 128, 128])
        b_scale = scale_of(tl.max(magnitude(b_lines), 1))
        line = first // 128 + tl.arange(0, BLOCK_D // 128)
        tl.store(scale + line.to(tl.int64) * rows + row, b_scale, mask=line < tl.cdiv(D, 128))
        b_y = tl.reshape(b_lines * tl.div_rn(1.0, b_scale)[:, None], [BLOCK_D])
    else:
        b_scale = scale_of(tl.max(magnitude(b_y)))
        tl.store(scale + row, b_scale)
        b_y *= tl.div_rn(1.0, b_scale)
    tl.store(codes + row * D + column, b_y.to(tl.float8e4nv), mask=column < D)
