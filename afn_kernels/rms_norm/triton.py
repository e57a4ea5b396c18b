"""A program per row in the forward; persistent programs with the weight gradient in registers in the backward."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels._rows import choose
from afn_kernels._triton_fp8 import store_quantised
from afn_kernels.quantize_fp8.layout import scale_layout
from afn_kernels.rms_norm.config import ROWS


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    x, residual, weight, y, h, rstd, x_stride, residual_stride, rows, eps, offset,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    m_col = column < D
    b_x = tl.load(x + row * x_stride + column, mask=m_col, other=0.0).to(tl.float32)
    if ADD:
        b_x += tl.load(residual + row * residual_stride + column, mask=m_col, other=0.0).to(tl.float32)
        b_h = b_x.to(h.dtype.element_ty)
        tl.store(h + row * D + column, b_h, mask=m_col)
        b_x = b_h.to(tl.float32)  # what is normalised is what is stored
    b_rstd = 1 / tl.sqrt(tl.sum(b_x * b_x) / D + eps)
    tl.store(rstd + row, b_rstd)
    b_y = b_x * b_rstd
    if weight is not None:
        b_weight = tl.load(weight + column, mask=m_col, other=0.0).to(tl.float32)
        if offset is None:
            b_y = b_y.to(h.dtype.element_ty).to(tl.float32)
        else:
            b_weight += offset
        b_y *= b_weight
    tl.store(y + row * D + column, b_y.to(y.dtype.element_ty), mask=m_col)


@triton.jit(do_not_specialize=["rows"])
def fp8_kernel(
    x, residual, weight, codes, scale, h, x_stride, residual_stride, rows, eps, offset,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ADD: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The forward, whose result is rounded to the dtype of x as there and then quantised."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    m_col = column < D
    b_x = tl.load(x + row * x_stride + column, mask=m_col, other=0.0).to(tl.float32)
    if ADD:
        b_x += tl.load(residual + row * residual_stride + column, mask=m_col, other=0.0).to(tl.float32)
        b_h = b_x.to(h.dtype.element_ty)
        tl.store(h + row * D + column, b_h, mask=m_col)
        b_x = b_h.to(tl.float32)
    b_y = b_x * (1 / tl.sqrt(tl.sum(b_x * b_x) / D + eps))
    if weight is not None:
        b_weight = tl.load(weight + column, mask=m_col, other=0.0).to(tl.float32)
        if offset is None:
            b_y = b_y.to(h.dtype.element_ty).to(tl.float32)
        else:
            b_weight += offset
        b_y *= b_weight
    store_quantised(b_y.to(x.dtype.element_ty).to(tl.float32), codes, scale, row, rows, 0, D, BLOCK_D, LINES)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    dy, dh, h, weight, rstd, dx, dresidual, partial, dy_stride, dh_stride, h_stride, rows, offset,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ADD: tl.constexpr, SPLIT: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK_D)
    m_col = column < D
    if weight is None:
        b_weight = tl.full([BLOCK_D], 1.0, tl.float32)
    else:
        b_weight = tl.load(weight + column, mask=m_col, other=0.0).to(tl.float32)
        if offset is not None:
            b_weight += offset
    b_dw = tl.zeros([BLOCK_D], tl.float32)
    for i in range(program, rows, tl.num_programs(0)):
        row = tl.cast(i, tl.int64)
        b_rstd = tl.load(rstd + row)
        b_n = tl.load(h + row * h_stride + column, mask=m_col, other=0.0).to(tl.float32) * b_rstd
        b_dy = tl.load(dy + row * dy_stride + column, mask=m_col, other=0.0).to(tl.float32)
        if DW:
            b_dw += b_dy * b_n
        b_dn = b_dy * b_weight
        b_dx = (b_dn - b_n * (tl.sum(b_dn * b_n) / D)) * b_rstd
        if ADD:
            b_dx += tl.load(dh + row * dh_stride + column, mask=m_col, other=0.0).to(tl.float32)
        tl.store(dx + row * D + column, b_dx.to(dx.dtype.element_ty), mask=m_col)
        if SPLIT:
            tl.store(dresidual + row * D + column, b_dx, mask=m_col)
    if DW:
        tl.store(partial + program.to(tl.int64) * D + column, b_dw, mask=m_col)


def forward(
    x: torch.Tensor, weight: torch.Tensor | None, residual: torch.Tensor | None, eps: float, offset: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [T, D] -> y [T, D], h = x + residual [T, D] in its dtype (empty without residual), 1 / rms [T]."""
    rows, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = torch.empty_like(y, dtype=residual.dtype) if residual is not None else y.new_empty(0)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    if not rows:
        return y, h, rstd
    forward_kernel[(rows,)](
        x, residual, weight, y, h, rstd, x.stride(0), 0 if residual is None else residual.stride(0), rows, eps, offset,
        D=width, BLOCK_D=triton.next_power_of_2(width), ADD=residual is not None, num_warps=choose(ROWS, width).warps,
    )  # fmt: skip
    return y, h, rstd


def forward_fp8(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    offset: float | None,
    line: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [T, D] -> codes [T, D], scales of rows or with ``line`` of 128 of them, and h as the forward has it."""
    rows, width = x.shape
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    h = torch.empty(
        x.shape if residual is not None else 0, dtype=(x if residual is None else residual).dtype, device=x.device
    )
    shape, strides = scale_layout(rows, width, 1, line)
    scale = torch.empty_strided(shape, strides, dtype=torch.float32, device=x.device)
    if rows:
        fp8_kernel[(rows,)](
            x, residual, weight, codes, scale, h, x.stride(0), 0 if residual is None else residual.stride(0), rows,
            eps, offset,
            D=width, BLOCK_D=max(128, triton.next_power_of_2(width)), ADD=residual is not None, LINES=bool(line),
            num_warps=choose(ROWS, width).warps,
        )  # fmt: skip
    return codes, scale, h


def backward(
    dy: torch.Tensor,
    dh: torch.Tensor | None,
    h: torch.Tensor,
    weight: torch.Tensor | None,
    rstd: torch.Tensor,
    offset: float | None,
    need_dw: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx [T, D], the same in the dtype of h (empty where that is the dtype of x) and dw [D] float32 (or empty)."""
    rows, width = h.shape
    config = choose(ROWS, width)
    programs = max(1, min(rows, config.programs(h.dtype, _triton.programs(h.device))))
    dx = torch.empty(h.shape, dtype=dy.dtype, device=h.device)
    split = h.dtype != dy.dtype
    dresidual = torch.empty(h.shape if split else 0, dtype=h.dtype, device=h.device)
    partial = torch.empty(programs if need_dw else 0, width, dtype=torch.float32, device=h.device)
    backward_kernel[(programs,)](
        dy, dh, h, weight, rstd, dx, dresidual, partial,
        dy.stride(0), 0 if dh is None else dh.stride(0), h.stride(0), rows, offset,
        D=width, BLOCK_D=triton.next_power_of_2(width), ADD=dh is not None, SPLIT=split, DW=need_dw,
        num_warps=config.warps,
    )  # fmt: skip
    return dx, dresidual, partial.sum(0) if need_dw else rstd.new_empty(0)
