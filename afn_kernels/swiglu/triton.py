"""Tiles of rows and columns; gate and up may be two halves of one tensor."""

import torch
import triton
import triton.language as tl

from afn_kernels.swiglu.config import choose


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    gate, up, y, gate_stride, up_stride, rows,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    # Neighbouring programs take neighbouring columns of the same rows.
    row = (program // tl.cdiv(D, BLOCK_D)).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    column = (program % tl.cdiv(D, BLOCK_D)) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    m_tile = (row < rows) & (column < D)
    b_gate = tl.load(gate + row * gate_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    b_up = tl.load(up + row * up_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    b_y = b_gate * tl.sigmoid(b_gate) * b_up
    tl.store(y + row * D + column, b_y.to(y.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    dy, gate, up, dgate, dup, dy_stride, gate_stride, up_stride, rows,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, DGATE: tl.constexpr, DUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program // tl.cdiv(D, BLOCK_D)).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    column = (program % tl.cdiv(D, BLOCK_D)) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    m_tile = (row < rows) & (column < D)
    b_dy = tl.load(dy + row * dy_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    b_gate = tl.load(gate + row * gate_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    b_sigmoid = tl.sigmoid(b_gate)
    if DGATE:
        b_up = tl.load(up + row * up_stride + column, mask=m_tile, other=0.0).to(tl.float32)
        b_dgate = b_dy * b_up * b_sigmoid * (1 + b_gate * (1 - b_sigmoid))
        tl.store(dgate + row * D + column, b_dgate.to(dgate.dtype.element_ty), mask=m_tile)
    if DUP:
        b_dup = b_dy * b_gate * b_sigmoid
        tl.store(dup + row * D + column, b_dup.to(dup.dtype.element_ty), mask=m_tile)


def _grid(rows: int, width: int, config) -> tuple[int]:
    return (triton.cdiv(rows, config.rows) * triton.cdiv(width, config.columns),)


def forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate, up [T, D] -> y [T, D]."""
    rows, width = gate.shape
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    config = choose(width)
    if y.numel():
        forward_kernel[_grid(rows, width, config)](
            gate, up, y, gate.stride(0), up.stride(0), rows,
            D=width, BLOCK_T=config.rows, BLOCK_D=config.columns, num_warps=config.warps,
        )  # fmt: skip
    return y


def backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, need_dgate: bool, need_dup: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """dgate and dup [T, D], each empty when it is not needed."""
    rows, width = gate.shape
    dgate, dup = (gate.new_empty(gate.shape if need else 0) for need in (need_dgate, need_dup))
    config = choose(width)
    if gate.numel():
        backward_kernel[_grid(rows, width, config)](
            dy, gate, up, dgate, dup, dy.stride(0), gate.stride(0), up.stride(0), rows,
            D=width, BLOCK_T=config.rows, BLOCK_D=config.columns, DGATE=need_dgate, DUP=need_dup,
            num_warps=config.warps,
        )  # fmt: skip
    return dgate, dup
