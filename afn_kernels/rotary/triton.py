"""A program per token: its angles are worked out once, in float64, and turn every head of q and k."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels._triton_math import sincos
from afn_kernels.rotary.config import CONFIG


@triton.jit
def load_halves(p, m_half, HALF: tl.constexpr):
    return tl.load(p, mask=m_half, other=0.0).to(tl.float32), tl.load(p + HALF, mask=m_half, other=0.0).to(tl.float32)


@triton.jit
def store_halves(p, b_low, b_high, m_half, HALF: tl.constexpr):
    tl.store(p, b_low.to(p.dtype.element_ty), mask=m_half)
    tl.store(p + HALF, b_high.to(p.dtype.element_ty), mask=m_half)


@triton.jit(do_not_specialize=["cache_rows"])
def rotary_kernel(
    q, k, v, positions, inv_freq, slots, q_out, k_out, k_cache, v_cache,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, k_row, k_row_head, v_row, v_row_head,
    direction, cache_rows,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr,
    WRITE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    HALF: tl.constexpr = D // 2
    o_head = tl.arange(0, BLOCK_H)[:, None]
    column = tl.arange(0, BLOCK_HALF)
    b_position = tl.load(positions + token).to(tl.float64)
    b_freq = tl.load(inv_freq + column, mask=column < HALF, other=0.0).to(tl.float64)
    b_sin, b_cos = sincos(b_position * b_freq)  # the exact angle of float32 operands: 48 bits fit
    b_sin, b_cos, column = b_sin[None] * direction, b_cos[None], column[None]
    if HQ > 0:
        for first in range(tl.program_id(1) * BLOCK_H, HQ, tl.num_programs(1) * BLOCK_H):
            head = (first + o_head).to(tl.int64)
            m_half = (head < HQ) & (column < HALF)
            b_a, b_b = load_halves(q + token * q_stride + head * q_head + column, m_half, HALF)
            p_out = q_out + (token * HQ + head) * D + column
            store_halves(p_out, b_a * b_cos - b_b * b_sin, b_b * b_cos + b_a * b_sin, m_half, HALF)
    if HK > 0:
        for first in range(tl.program_id(1) * BLOCK_H, HK, tl.num_programs(1) * BLOCK_H):
            head = (first + o_head).to(tl.int64)
            m_half = (head < HK) & (column < HALF)
            b_a, b_b = load_halves(k + token * k_stride + head * k_head + column, m_half, HALF)
            b_low, b_high = b_a * b_cos - b_b * b_sin, b_b * b_cos + b_a * b_sin
            store_halves(k_out + (token * HK + head) * D + column, b_low, b_high, m_half, HALF)
            if WRITE:
                slot = tl.load(slots + token).to(tl.int64)
                m_slot = m_half & (slot >= 0) & (slot < cache_rows)
                store_halves(k_cache + slot * k_row + head * k_row_head + column, b_low, b_high, m_slot, HALF)
                b_a, b_b = load_halves(v + token * v_stride + head * v_head + column, m_half, HALF)
                store_halves(v_cache + slot * v_row + head * v_row_head + column, b_a, b_b, m_slot, HALF)


def launch(q, k, positions, inv_freq, direction, v=None, slots=None, k_cache=None, v_cache=None):
    """q [T, Hq, D] and k [T, Hk, D], either may be None, turned by direction · φ; k and v also into the caches."""
    like = k if q is None else q
    tokens, _, width = like.shape
    out = [like.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k)]
    heads = [0 if x is None else x.shape[1] for x in (q, k)]
    if not tokens or not width or not max(heads):
        return tuple(out)
    few = tokens < CONFIG.few * _triton.programs(like.device)
    strides = [0 if x is None else x.stride(i) for x in (q, k, v, k_cache, v_cache) for i in (0, 1)]
    rotary_kernel[(tokens, triton.cdiv(max(heads), CONFIG.heads) if few else 1)](
        q, k, v, positions, inv_freq, slots, *out, k_cache, v_cache, *strides, direction,
        0 if k_cache is None else len(k_cache),
        HQ=heads[0], HK=heads[1], D=width, BLOCK_H=CONFIG.heads, BLOCK_HALF=triton.next_power_of_2(width // 2),
        WRITE=slots is not None, num_warps=CONFIG.warps,
    )  # fmt: skip
    return tuple(out)


def forward(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated q and k."""
    return launch(q, k, positions, inv_freq, 1.0)


def backward(
    dq: torch.Tensor | None, dk: torch.Tensor | None, positions: torch.Tensor, inv_freq: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turned back; the gradient of what is None is empty."""
    return launch(dq, dk, positions, inv_freq, -1.0)


def write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated q and k; row slots[t] of the caches [rows, Hk, D] takes k and v of token t."""
    return launch(q, k, positions, inv_freq, 1.0, v, slots, k_cache, v_cache)
