"""Tiles of rows and columns; the backward walks down its columns with the bias gradient in registers."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels._triton_activations import activation
from afn_kernels.bias_gelu.config import choose


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    x, bias, y, x_stride, rows,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    # Neighbouring programs take neighbouring columns of the same rows.
    row = (program // tl.cdiv(D, BLOCK_D)).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    column = (program % tl.cdiv(D, BLOCK_D)) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    m_col = column < D
    m_tile = (row < rows) & m_col
    b_u = tl.load(x + row * x_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    if bias is not None:
        b_u += tl.load(bias + column, mask=m_col, other=0.0).to(tl.float32)
    b_y, _ = activation(b_u, KIND)
    tl.store(y + row * D + column, b_y.to(y.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["rows", "steps"])
def backward_kernel(
    dy, x, bias, dx, partial, dy_stride, x_stride, rows, steps,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, DX: tl.constexpr, DB: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) // tl.cdiv(D, BLOCK_D)
    column = (tl.program_id(0) % tl.cdiv(D, BLOCK_D)) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    m_col = column < D
    if bias is not None:
        b_bias = tl.load(bias + column, mask=m_col, other=0.0).to(tl.float32)
    b_db = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for i in range(first, tl.cdiv(rows, BLOCK_T), steps):
        row = tl.cast(i, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
        m_tile = (row < rows) & m_col
        b_u = tl.load(x + row * x_stride + column, mask=m_tile, other=0.0).to(tl.float32)
        if bias is not None:
            b_u += b_bias
        b_dy = tl.load(dy + row * dy_stride + column, mask=m_tile, other=0.0).to(tl.float32)
        _, b_slope = activation(b_u, KIND)
        b_dx = b_dy * b_slope
        if DX:
            tl.store(dx + row * D + column, b_dx.to(dx.dtype.element_ty), mask=m_tile)
        if DB:
            b_db += b_dx
    if DB:
        p_partial = partial + first.to(tl.int64) * D + column
        tl.store(p_partial, tl.sum(b_db, 0)[None, :], mask=m_col)


def forward(x: torch.Tensor, bias: torch.Tensor | None, approximate: str) -> torch.Tensor:
    """x [T, D] -> y [T, D]."""
    rows, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    config = choose(width)
    if y.numel():
        forward_kernel[(triton.cdiv(rows, config.rows) * triton.cdiv(width, config.columns),)](
            x, bias, y, x.stride(0), rows,
            D=width, BLOCK_T=config.rows, BLOCK_D=config.columns, KIND=f"gelu_{approximate}", num_warps=config.warps,
        )  # fmt: skip
    return y


def backward(
    dy: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, need_dx: bool, need_db: bool, approximate: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx [T, D] and db [D] float32, each empty when it is not needed."""
    rows, width = x.shape
    config = choose(width)
    across = triton.cdiv(width, config.columns)
    steps = max(1, min(triton.cdiv(rows, config.rows), config.waves * _triton.programs(x.device) // max(1, across)))
    dx = torch.empty(x.shape if need_dx else 0, dtype=x.dtype, device=x.device)
    partial = torch.empty(steps if need_db else 0, width, dtype=torch.float32, device=x.device)
    if width:
        backward_kernel[(across * steps,)](
            dy, x, bias, dx, partial, dy.stride(0), x.stride(0), rows, steps,
            D=width, BLOCK_T=config.rows, BLOCK_D=config.columns, DX=need_dx, DB=need_db,
            KIND=f"gelu_{approximate}", num_warps=config.warps,
        )  # fmt: skip
    return dx, partial.sum(0) if need_db else partial.new_empty(0)
