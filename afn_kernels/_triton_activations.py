"""Activations of feed-forward layers with their slopes, and the kernels of gated ones."""

import torch
import triton
import triton.language as tl

from afn_kernels._rows import GatedTile
from afn_kernels._triton_math import exp2, reciprocal


@triton.jit
def normal_distribution(b_u):
    """Φ(u) and φ(u) of the standard normal distribution, from one exponential.

    Φ(−|u|) = exp(−u² / 2) · t · P(t) with t = 1 / (1 + 0.28 |u|); P is a least-maximum fit made for this kernel in
    float64, whose error in u · Φ(u) is at most 1.2e-8: a fifth of float32's step below 1. There are no branches, and
    one exponential serves both; with erf, φ would need a second one.
    """
    t = reciprocal(1 + 0.28 * tl.abs(b_u))
    b_exp = exp2(b_u * (b_u * -0.7213475204444817))  # exp(−u² / 2)
    b_fit = 0.39206431791997903 - 0.10632783316643256 * t
    b_fit = -0.24066545807951548 + b_fit * t
    b_fit = 0.2719694263937438 + b_fit * t
    b_fit = 0.06623055393860394 + b_fit * t
    b_fit = 0.11672898204498199 + b_fit * t
    b_tail = b_fit * t * b_exp
    return tl.where(b_u < 0, b_tail, 1 - b_tail), 0.3989422804014327 * b_exp


@triton.jit
def activation(b_u, KIND: tl.constexpr):
    """Value and slope in float32 of "silu", of GELU ("gelu_none") or of its approximation by tanh ("gelu_tanh")."""
    if KIND == "silu":
        b_share = tl.sigmoid(b_u)
        b_slope = b_share * (1 + b_u * (1 - b_share))
    elif KIND == "gelu_none":
        b_share, b_pdf = normal_distribution(b_u)
        b_slope = b_share + b_u * b_pdf
    else:
        # (1 ± tanh|z|) / 2 are t and e · t with e = exp(−2|z|), t = 1 / (1 + e): one exponential, nothing cancels.
        b_square = b_u * b_u
        b_exp = exp2(tl.abs(b_u) * (-2.302208198144325 - 0.1029432395800235 * b_square))
        t = reciprocal(1 + b_exp)
        b_share = tl.where(b_u < 0, b_exp * t, t)
        b_inner = 1.5957691216057308 + 0.21406444881780076 * b_square  # 2 dz/du, z = √(2 / π) · (u + 0.044715 u³)
        b_slope = b_share + b_u * b_inner * (b_exp * t * t)
    return b_u * b_share, b_slope


@triton.jit(do_not_specialize=["rows"])
def gated_forward_kernel(
    gate, up, y, gate_stride, up_stride, rows,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    # Neighbouring programs take neighbouring columns of the same rows.
    row = (program // tl.cdiv(D, BLOCK_D)).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    column = (program % tl.cdiv(D, BLOCK_D)) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    m_tile = (row < rows) & (column < D)
    b_gate = tl.load(gate + row * gate_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    b_up = tl.load(up + row * up_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    b_active, _ = activation(b_gate, KIND)
    tl.store(y + row * D + column, (b_active * b_up).to(y.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["rows"])
def gated_backward_kernel(
    dy, gate, up, dgate, dup, dy_stride, gate_stride, up_stride, rows,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, DGATE: tl.constexpr, DUP: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program // tl.cdiv(D, BLOCK_D)).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    column = (program % tl.cdiv(D, BLOCK_D)) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    m_tile = (row < rows) & (column < D)
    b_dy = tl.load(dy + row * dy_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    b_gate = tl.load(gate + row * gate_stride + column, mask=m_tile, other=0.0).to(tl.float32)
    b_active, b_slope = activation(b_gate, KIND)
    if DGATE:
        b_up = tl.load(up + row * up_stride + column, mask=m_tile, other=0.0).to(tl.float32)
        tl.store(dgate + row * D + column, (b_dy * b_up * b_slope).to(dgate.dtype.element_ty), mask=m_tile)
    if DUP:
        tl.store(dup + row * D + column, (b_dy * b_active).to(dup.dtype.element_ty), mask=m_tile)


def _grid(rows: int, width: int, tile: GatedTile) -> tuple[int]:
    return (triton.cdiv(rows, tile.rows) * triton.cdiv(width, tile.columns),)


def gated_forward(gate: torch.Tensor, up: torch.Tensor, kind: str, tile: GatedTile) -> torch.Tensor:
    """gate, up [T, D], perhaps two halves of one tensor -> y [T, D]."""
    rows, width = gate.shape
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if y.numel():
        gated_forward_kernel[_grid(rows, width, tile)](
            gate, up, y, gate.stride(0), up.stride(0), rows,
            D=width, BLOCK_T=tile.rows, BLOCK_D=tile.columns, KIND=kind, num_warps=tile.warps,
        )  # fmt: skip
    return y


def gated_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, need_dgate: bool, need_dup: bool, kind: str, tile: GatedTile
) -> tuple[torch.Tensor, torch.Tensor]:
    """dgate and dup [T, D], each empty when it is not needed."""
    rows, width = gate.shape
    dgate, dup = (gate.new_empty(gate.shape if need else 0) for need in (need_dgate, need_dup))
    if gate.numel():
        gated_backward_kernel[_grid(rows, width, tile)](
            dy, gate, up, dgate, dup, dy.stride(0), gate.stride(0), up.stride(0), rows,
            D=width, BLOCK_T=tile.rows, BLOCK_D=tile.columns, DGATE=need_dgate, DUP=need_dup, KIND=kind,
            num_warps=tile.warps,
        )  # fmt: skip
    return dgate, dup
