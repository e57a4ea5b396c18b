"""A program per block of new tokens and head, over full blocks of keys first and masked ones last, page by page."""

import torch
import triton
import triton.language as tl

from afn_kernels._fp8_scales import count
from afn_kernels._triton_math import softmax_step, tanh
from afn_kernels.attention.tiles import LN2, LOG2E, adjacent, key_begin, key_range, load_rows, precision
from afn_kernels.paged_attention.config import HOPS, choose
from afn_kernels.paged_attention.tiles import tiles_of


@triton.jit
def _load_scale(p, head, COUNT: tl.constexpr):
    """The scale of a cache: one for all KV heads or one for each; 1 where there is none."""
    b_scale = 1.0
    if COUNT:
        b_scale = tl.load(p + (head if COUNT > 1 else 0)).to(tl.float32)
    return b_scale


@triton.jit
def _entries(table, n, o_n, m_n, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr):
    """Page and place in it of each of a block's keys; one page for all where pages hold whole blocks."""
    if PAGE % BLOCK_N == 0:
        b_page = tl.load(table + n // PAGE).to(tl.int64) + tl.zeros([BLOCK_N], tl.int64)
    elif MASKED:
        b_page = tl.load(table + o_n // PAGE, mask=m_n, other=0).to(tl.int64)
    else:
        b_page = tl.load(table + o_n // PAGE).to(tl.int64)
    return b_page, (o_n % PAGE).to(tl.int64)


@triton.jit
def _load(p, b_rows, m_n, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    pointers = p + b_rows[:, None] + column[None, :]
    if MASKED:
        b_x = tl.load(pointers, mask=m_n[:, None] & (column < D)[None, :], other=0.0)
    elif D != BLOCK_D:
        b_x = tl.load(pointers, mask=(column < D)[None, :], other=0.0)
    else:
        b_x = tl.load(pointers)
    return b_x


@triton.jit
def _attend(
    b_q, b_acc, b_m, b_l, k, v, table, k_strides, v_strides, low, high, first, o_m, lower, upper, nk, scale2, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys from ``low`` to ``high``: accumulator, running maximum and sum.

    Keys before ``first`` are nobody's: their pages may have been given away.
    """
    k_page, k_token = k_strides
    v_page, v_token = v_strides
    for n in tl.range(low, high, BLOCK_N, num_stages=STAGES):
        o_n = n + tl.arange(0, BLOCK_N)
        m_n = (o_n < nk) & (o_n >= first)
        b_page, b_slot = _entries(table, n, o_n, m_n, PAGE, BLOCK_N, MASKED)
        b_k = _load(k, b_page * k_page + b_slot * k_token, m_n, D, BLOCK_D, MASKED).to(b_q.dtype)
        b_s = tl.dot(b_q, b_k.T, input_precision=PRECISION)
        if SOFTCAP:
            b_s = tanh(b_s * cap)
        if MASKED:
            m_key = (o_n < nk)[None, :]
            if CAUSAL:
                m_key = m_key & (o_n[None, :] <= (o_m + upper)[:, None])
            if WINDOW:
                m_key = m_key & (o_n[None, :] >= (o_m + lower)[:, None])
            b_s = tl.where(m_key, b_s, float("-inf"))
        b_p, b_keep, b_m, b_l = softmax_step(b_s, b_m, b_l, scale2, LN2, MASKED)
        b_v = _load(v, b_page * v_page + b_slot * v_token, m_n, D, BLOCK_D, MASKED).to(b_q.dtype)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_keep[:, None], input_precision=PRECISION)
    return b_acc, b_m, b_l


@triton.jit(do_not_specialize=["table_stride", "left", "right"])
def paged_kernel(
    q, k, v, block_table, tiles, k_scale, v_scale, out, q_strides, k_strides, v_strides, table_stride, scale2, cap,
    left, right,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr,
    K_SCALES: tl.constexpr, V_SCALES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0) // HEADS, (tl.program_id(0) % HEADS).to(tl.int64)
    p_tile = tiles + tile * 5
    q0, nq = tl.load(p_tile).to(tl.int64), tl.load(p_tile + 1)
    sequence, nk = tl.load(p_tile + 2).to(tl.int64), tl.load(p_tile + 3)
    m = tl.load(p_tile + 4) * BLOCK_M
    if m >= nq:
        return
    q_token, q_head = q_strides
    k_page, k_token, k_head = k_strides
    v_page, v_token, v_head = v_strides
    kv_head = head // GROUP
    k_scale_h = _load_scale(k_scale, kv_head, K_SCALES)
    o_m = m + tl.arange(0, BLOCK_M)
    b_q = load_rows(q + q0 * q_token + head * q_head, m, q_token, nq, BLOCK_M, D, BLOCK_D, True, FAR)
    if SOFTCAP:
        cap *= k_scale_h
    elif K_SCALES:  # masked scores are -inf and stay so only times more than 0: the sign goes into q, which is exact
        scale2 *= tl.abs(k_scale_h)
        sign = tl.where(scale2 == 0, 0.0, tl.where(k_scale_h < 0, -1.0, 1.0))
        scale2 = tl.where(scale2 == 0, 1.0, scale2)
        b_q = (b_q * sign).to(b_q.dtype)
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    lower, upper = nk - nq, nk - nq
    if WINDOW:
        lower, upper = lower - left, upper + right
    every, some = key_range(m, nq, upper, nk, BLOCK_M, BLOCK_N, CAUSAL)
    p_k, p_v, p_table = k + kv_head * k_head, v + kv_head * v_head, block_table + sequence * table_stride
    full, first = 0, 0
    if WINDOW:
        begin, full = key_begin(m, nq, lower, some, BLOCK_M, BLOCK_N)
        first = m + lower
        b_acc, b_m, b_l = _attend(
            b_q, b_acc, b_m, b_l, p_k, p_v, p_table, (k_page, k_token), (v_page, v_token), begin,
            tl.minimum(full, some), first, o_m, lower, upper, nk, scale2, cap, D, BLOCK_D, BLOCK_N, PAGE, True, CAUSAL,
            WINDOW, SOFTCAP, PRECISION, 1,
        )  # fmt: skip
        every = tl.maximum(every, full)
    b_acc, b_m, b_l = _attend(
        b_q, b_acc, b_m, b_l, p_k, p_v, p_table, (k_page, k_token), (v_page, v_token), full, every, first, o_m, lower,
        upper, nk, scale2, cap, D, BLOCK_D, BLOCK_N, PAGE, False, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES,
    )  # fmt: skip
    b_acc, b_m, b_l = _attend(
        b_q, b_acc, b_m, b_l, p_k, p_v, p_table, (k_page, k_token), (v_page, v_token), every, some, first, o_m, lower,
        upper, nk, scale2, cap, D, BLOCK_D, BLOCK_N, PAGE, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, 1,
    )  # fmt: skip
    b_l = tl.where(b_l == 0, 1.0, b_l)
    b_out = b_acc * (_load_scale(v_scale, kv_head, V_SCALES) / b_l)[:, None]
    column = tl.arange(0, BLOCK_D)
    p_out = (q0 + o_m).to(tl.int64)[:, None] * (HEADS * D) + head * D + column[None, :]
    tl.store(out + p_out, b_out.to(out.dtype.element_ty), mask=(o_m < nq)[:, None] & (column < D)[None, :])


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    lengths: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
) -> torch.Tensor:
    """[T, Hq, D], contiguous."""
    tokens, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    (page, kv_heads), block_d = k_cache.shape[1:3], triton.next_power_of_2(dim)
    local = left >= 0
    config, q = choose(dim, q.dtype == torch.float32, local or bool(softcap), q.device), adjacent(q)
    table = tiles_of(cu_seqlens_q, lengths, tokens, block_table.shape[1] * page, config.queries, causal or local)
    paged_kernel[(len(table) * heads,)](
        q, k_cache, v_cache, block_table, table, k_scale, v_scale, out, q.stride()[:2], k_cache.stride()[:3],
        v_cache.stride()[:3], block_table.stride(0), (softcap or scale) * LOG2E, scale / softcap if softcap else None,
        left if local else None, right if local else None,
        HEADS=heads, GROUP=heads // kv_heads, D=dim, BLOCK_D=block_d, PAGE=page, K_SCALES=count(k_scale),
        V_SCALES=count(v_scale), BLOCK_M=config.queries, BLOCK_N=config.keys, CAUSAL=causal or local, WINDOW=local,
        SOFTCAP=bool(softcap), PRECISION=precision(q), STAGES=config.stages + HOPS if config.stages > 1 else 1,
        FAR=q.stride(0) >= 2**22, num_warps=config.warps,
    )  # fmt: skip
    return out
