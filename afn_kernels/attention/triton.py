"""The forward: a program per block of queries and head, over full blocks of keys first and masked ones last."""

import torch
import triton
import triton.language as tl

from afn_kernels._triton_math import softmax_step, tanh
from afn_kernels.attention.config import choose
from afn_kernels.attention.tiles import (
    LN2,
    LOG2E,
    adjacent,
    far,
    flags,
    key_begin,
    key_range,
    load_rows,
    locate,
    optional,
    precision,
    seen,
)


@triton.jit
def _attend(
    b_q, b_acc, b_m, b_l, k, v, k_stride, v_stride, low, high, o_m, lower, upper, nk, scale2, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys from ``low`` to ``high``: accumulator, running maximum and sum."""
    for n in tl.range(low, high, BLOCK_N, num_stages=STAGES):
        o_n = n + tl.arange(0, BLOCK_N)
        b_k = load_rows(k, n, k_stride, nk, BLOCK_N, D, BLOCK_D, MASKED, FAR)
        b_s = tl.dot(b_q, b_k.T, input_precision=PRECISION)
        if SOFTCAP:
            b_s = tanh(b_s * cap)
        if MASKED:
            m_key = seen(o_m[:, None], o_n[None, :], lower, upper, nk, CAUSAL, WINDOW)
            b_s = tl.where(m_key, b_s, float("-inf"))
        b_p, b_keep, b_m, b_l = softmax_step(b_s, b_m, b_l, scale2, LN2, MASKED)
        b_v = load_rows(v, n, v_stride, nk, BLOCK_N, D, BLOCK_D, MASKED, FAR)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_keep[:, None], input_precision=PRECISION)
    return b_acc, b_m, b_l


@triton.jit(do_not_specialize=["total_q", "total_k", "tiles", "left", "right"])
def forward_kernel(
    q, k, v, out, lse, out_c, lse_c, table, q_strides, k_strides, v_strides,
    total_q, total_k, tiles, scale2, cap, left, right,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PACKED: tl.constexpr, CARRY: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0) // HEADS, (tl.program_id(0) % HEADS).to(tl.int64)
    q_token, q_head = q_strides
    k_token, k_head = k_strides
    v_token, v_head = v_strides
    q0, nq, k0, nk, block = locate(table, tile, tiles, total_q, total_k, PACKED, True)
    m = block * BLOCK_M
    if m >= nq:
        return
    o_m = m + tl.arange(0, BLOCK_M)
    m_row = o_m < nq
    column = tl.arange(0, BLOCK_D)
    b_q = load_rows(q + q0 * q_token + head * q_head, m, q_token, nq, BLOCK_M, D, BLOCK_D, True, FAR)
    p_out = (q0 + o_m).to(tl.int64)[:, None] * (HEADS * D) + head * D + column[None, :]
    p_lse = head * total_q + q0 + o_m
    m_out = m_row[:, None] & (column < D)[None, :]
    if CARRY:
        b_m = tl.load(lse_c + p_lse, mask=m_row, other=float("-inf"))
        b_l = tl.where(b_m == float("-inf"), 0.0, 1.0)
        b_acc = tl.load(out_c + p_out, mask=m_out, other=0.0)
        b_acc = tl.where((b_l > 0)[:, None], b_acc, 0.0)
    else:
        b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        b_l = tl.zeros([BLOCK_M], tl.float32)
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    lower, upper = nk - nq, nk - nq
    if WINDOW:
        lower, upper = lower - left, upper + right
    every, some = key_range(m, nq, upper, nk, BLOCK_M, BLOCK_N, CAUSAL)
    p_k = k + k0 * k_token + head // GROUP * k_head
    p_v = v + k0 * v_token + head // GROUP * v_head
    full = 0
    if WINDOW:
        begin, full = key_begin(m, nq, lower, some, BLOCK_M, BLOCK_N)
        b_acc, b_m, b_l = _attend(
            b_q, b_acc, b_m, b_l, p_k, p_v, k_token, v_token, begin, tl.minimum(full, some), o_m, lower, upper, nk,
            scale2, cap, D, BLOCK_D, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, 1, FAR,
        )  # fmt: skip
        every = tl.maximum(every, full)
    b_acc, b_m, b_l = _attend(
        b_q, b_acc, b_m, b_l, p_k, p_v, k_token, v_token, full, every, o_m, lower, upper, nk, scale2, cap,
        D, BLOCK_D, BLOCK_N, False, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, FAR,
    )  # fmt: skip
    b_acc, b_m, b_l = _attend(
        b_q, b_acc, b_m, b_l, p_k, p_v, k_token, v_token, every, some, o_m, lower, upper, nk, scale2, cap,
        D, BLOCK_D, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, 1, FAR,
    )  # fmt: skip
    empty = b_l == 0
    b_l = tl.where(empty, 1.0, b_l)
    tl.store(out + p_out, (b_acc / b_l[:, None]).to(out.dtype.element_ty), mask=m_out)
    tl.store(lse + p_lse, tl.where(empty, float("-inf"), b_m + tl.log(b_l)), mask=m_row)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out_c: torch.Tensor | None,
    lse_c: torch.Tensor | None,
    table: torch.Tensor | None,
    dq_table: torch.Tensor | None,
    dkv_table: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [Tq, Hq, D], float32 with a carry, and lse [Tq, Hq], in memory [Hq, Tq].

    ``table`` has the tiles of a packed batch (``tile_table``); the other two are for the backward.
    """
    (tokens, heads, dim), carry = q.shape, out_c is not None
    out = torch.empty(q.shape, dtype=torch.float32 if carry else q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if not tokens:
        return out, lse.t()
    local = left >= 0 or bool(softcap)
    config = choose("carry" if carry else "forward", dim, q.dtype == torch.float32, local, q.device)
    q, k, v = adjacent(q), adjacent(k), adjacent(v)
    tiles = triton.cdiv(tokens, config.queries) if table is None else len(table)
    forward_kernel[(tiles * heads,)](
        q, k, v, out, lse, out_c.contiguous() if carry else None, lse_c.t().contiguous() if carry else None, table,
        q.stride()[:2], k.stride()[:2], v.stride()[:2],
        tokens, len(k), tiles, (softcap or scale) * LOG2E, *optional(left, right, softcap, scale),
        HEADS=heads, GROUP=heads // k.shape[1], D=dim, BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=config.queries, BLOCK_N=config.keys, PACKED=table is not None, CARRY=carry, PRECISION=precision(q),
        **flags(causal, left, softcap), STAGES=config.stages, FAR=far(q, k, v), num_warps=config.warps,
    )  # fmt: skip
    return out, lse.t()
