"""A program per token: its angles are worked out once, in float64, and turn every head of q and k."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels._triton_math import sincos
from afn_kernels.rotary.config import CONFIG


@triton.jit
def load_pairs(p, m_pair, APART: tl.constexpr):
    """Both features of each pair."""
    b_low = tl.load(p, mask=m_pair, other=0.0)
    return b_low, tl.load(p + APART, mask=m_pair, other=0.0)


@triton.jit
def store_pairs(p, b_low, b_high, m_pair, APART: tl.constexpr):
    tl.store(p, b_low.to(p.dtype.element_ty), mask=m_pair)
    tl.store(p + APART, b_high.to(p.dtype.element_ty), mask=m_pair)


@triton.jit
def turned(b_a, b_b, b_sin, b_cos):
    """Pairs, turned by their angles, in float32."""
    b_a, b_b = b_a.to(tl.float32), b_b.to(tl.float32)
    return b_a * b_cos - b_b * b_sin, b_b * b_cos + b_a * b_sin


@triton.jit
def load_angles(
    positions, inv_freq, token, angle_stride, column, m_column,
    PAIRS: tl.constexpr, PER_PAIR: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """sin and cos of a token's pairs: of position · inv_freq, or as they are GIVEN in the place of the two."""
    if GIVEN:
        b_cos = tl.load(positions + token * angle_stride + column, mask=m_column, other=0.0).to(tl.float32)
        b_sin = tl.load(inv_freq + token * angle_stride + column, mask=m_column, other=0.0).to(tl.float32)
    else:
        if PER_PAIR:
            b_position = tl.load(positions + token * PAIRS + column, mask=m_column, other=0.0).to(tl.float64)
        else:
            b_position = tl.load(positions + token).to(tl.float64)
        b_freq = tl.load(inv_freq + column, mask=m_column, other=0.0).to(tl.float64)
        b_sin, b_cos = sincos(b_position * b_freq)  # the exact angle of float32 operands: 48 bits fit
    return b_sin, b_cos


@triton.jit(do_not_specialize=["cache_rows"])
def rotary_kernel(
    q, k, v, positions, inv_freq, slots, q_out, k_out, k_cache, v_cache,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, k_row, k_row_head, v_row, v_row_head,
    direction, cache_rows, angle_stride,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    PER_PAIR: tl.constexpr, GIVEN: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    STEP: tl.constexpr = 2 if INTERLEAVED else 1
    APART: tl.constexpr = 1 if INTERLEAVED else PAIRS
    o_head = tl.arange(0, BLOCK_H)[:, None]
    column = tl.arange(0, BLOCK_HALF)
    m_column = column < PAIRS
    first = tl.program_id(1) * BLOCK_H
    if HQ > 0:  # on their way while the angles are worked out
        p_q = q + token * q_stride + (first + o_head).to(tl.int64) * q_head + column[None] * STEP
        b_a, b_b = load_pairs(p_q, (first + o_head < HQ) & m_column[None], APART)
    b_sin, b_cos = load_angles(positions, inv_freq, token, angle_stride, column, m_column, PAIRS, PER_PAIR, GIVEN)
    b_sin, b_cos, m_column, column = b_sin[None] * direction, b_cos[None], m_column[None], column[None] * STEP
    rest = 2 * PAIRS + tl.arange(0, BLOCK_REST)[None]  # features that pass
    if HQ > 0:
        for first in range(tl.program_id(1) * BLOCK_H, HQ, tl.num_programs(1) * BLOCK_H):
            head = (first + o_head).to(tl.int64)
            after = head + tl.num_programs(1) * BLOCK_H
            p_after = q + token * q_stride + after * q_head + column
            b_after = load_pairs(p_after, (after < HQ) & m_column, APART)
            m_pair = (head < HQ) & m_column
            p_out = q_out + (token * HQ + head) * D
            b_low, b_high = turned(b_a, b_b, b_sin, b_cos)
            store_pairs(p_out + column, b_low, b_high, m_pair, APART)
            b_a, b_b = b_after
            if 2 * PAIRS < D:
                m_rest = (head < HQ) & (rest < D)
                tl.store(p_out + rest, tl.load(q + token * q_stride + head * q_head + rest, mask=m_rest), mask=m_rest)
    if HK > 0:
        for first in range(tl.program_id(1) * BLOCK_H, HK, tl.num_programs(1) * BLOCK_H):
            head = (first + o_head).to(tl.int64)
            m_pair = (head < HK) & m_column
            b_key = load_pairs(k + token * k_stride + head * k_head + column, m_pair, APART)
            b_low, b_high = turned(b_key[0], b_key[1], b_sin, b_cos)
            p_out = k_out + (token * HK + head) * D
            store_pairs(p_out + column, b_low, b_high, m_pair, APART)
            m_rest = (head < HK) & (rest < D)
            if 2 * PAIRS < D:
                b_rest = tl.load(k + token * k_stride + head * k_head + rest, mask=m_rest)
                tl.store(p_out + rest, b_rest, mask=m_rest)
            if WRITE:
                slot = tl.load(slots + token).to(tl.int64)
                m_slot = (slot >= 0) & (slot < cache_rows)
                p_key = k_cache + slot * k_row + head * k_row_head
                p_value = v_cache + slot * v_row + head * v_row_head
                store_pairs(p_key + column, b_low, b_high, m_pair & m_slot, APART)
                b_value = load_pairs(v + token * v_stride + head * v_head + column, m_pair, APART)
                store_pairs(p_value + column, b_value[0], b_value[1], m_pair & m_slot, APART)
                if 2 * PAIRS < D:
                    tl.store(p_key + rest, b_rest, mask=m_rest & m_slot)
                    b_rest = tl.load(v + token * v_stride + head * v_head + rest, mask=m_rest)
                    tl.store(p_value + rest, b_rest, mask=m_rest & m_slot)


def launch(q, k, positions, inv_freq, interleaved, direction, given=False, v=None, slots=None, caches=(None, None)):
    """q [T, Hq, D] and k [T, Hk, D], either may be None, turned by direction · φ; k and v also into the caches.

    ``given``: ``positions`` and ``inv_freq`` are cosines and sines [T, pairs] of one stride between tokens.
    """
    like = k if q is None else q
    (tokens, _, width), pairs = like.shape, inv_freq.shape[-1]
    out = [like.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k)]
    heads = [0 if x is None else x.shape[1] for x in (q, k)]
    if not tokens or not width or not max(heads):
        return tuple(out)
    few = tokens < CONFIG.few * _triton.programs(like.device)
    strides = [0 if x is None else x.stride(i) for x in (q, k, v, *caches) for i in (0, 1)]
    rotary_kernel[(tokens, triton.cdiv(max(heads), CONFIG.heads) if few else 1)](
        q, k, v, positions, inv_freq, slots, *out, *caches, *strides, direction,
        0 if slots is None else len(caches[0]), positions.stride(0) if given else None,
        HQ=heads[0], HK=heads[1], D=width, PAIRS=pairs, INTERLEAVED=interleaved,
        PER_PAIR=positions.dim() == 2, GIVEN=given, BLOCK_H=CONFIG.heads,
        BLOCK_HALF=triton.next_power_of_2(max(pairs, 1)), BLOCK_REST=triton.next_power_of_2(max(width - 2 * pairs, 1)),
        WRITE=slots is not None, num_warps=CONFIG.warps,
    )  # fmt: skip
    return tuple(out)


def forward(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, interleaved: bool, given: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated q and k."""
    return launch(q, k, positions, inv_freq, interleaved, 1.0, given)


def backward(
    dq: torch.Tensor | None,
    dk: torch.Tensor | None,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    interleaved: bool,
    given: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turned back; the gradient of what is None is empty."""
    return launch(dq, dk, positions, inv_freq, interleaved, -1.0, given)


def write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated q and k; row slots[t] of the caches [rows, Hk, D] takes k and v of token t."""
    return launch(q, k, positions, inv_freq, interleaved, 1.0, False, v, slots, (k_cache, v_cache))
