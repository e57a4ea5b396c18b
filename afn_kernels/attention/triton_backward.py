"""The backward: dq by blocks of queries, dk and dv by blocks of keys over all query heads of a group. No atomics."""

import torch
import triton
import triton.language as tl

from afn_kernels._triton_math import tanh
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


@triton.jit(do_not_specialize=["tokens"])
def delta_kernel(
    dout, out, dlse, delta, lse, out_c, lse_c, dout_c, dlse_c, d_token, d_head, tokens,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    DLSE: tl.constexpr, CARRY: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dout · out) − dlse, for one head: what every dp is compared with; and the carry's gradients."""
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, BLOCK_D)
    m_row = token < tokens
    m_out = m_row[:, None] & (column < D)[None, :]
    p_out = token[:, None] * (HEADS * D) + head * D + column[None, :]
    p_lse = head * tokens + token
    p_dout = dout + token[:, None] * d_token + head * d_head + column[None, :]
    b_dout = tl.load(p_dout, mask=m_out, other=0.0).to(tl.float32)
    b_out = tl.load(out + p_out, mask=m_out, other=0.0).to(tl.float32)
    b_dlse = tl.load(dlse + p_lse, mask=m_row, other=0.0) if DLSE else tl.zeros([BLOCK_T], tl.float32)
    b_delta = tl.sum(b_dout * b_out, 1) - b_dlse
    b_lse = tl.load(lse + p_lse, mask=m_row, other=0.0)
    # A query that sees no key has no share in any gradient, whatever arrives for it: NaN from a logaddexp, say.
    tl.store(delta + p_lse, tl.where(b_lse == float("-inf"), 0.0, b_delta), mask=m_row)
    if CARRY:
        b_lse_c = tl.load(lse_c + p_lse, mask=m_row, other=float("-inf"))
        # A carry over no keys has no share, nor has one beside no keys at all.
        b_p = tl.where(b_lse_c == float("-inf"), 0.0, tl.exp(b_lse_c - b_lse))
        b_out_c = tl.load(out_c + p_out, mask=m_out, other=0.0)
        b_dlse_c = tl.where(b_p > 0, b_p * (tl.sum(b_dout * (b_out_c - b_out), 1) + b_dlse), 0.0)
        tl.store(dout_c + p_out, b_p[:, None] * b_dout, mask=m_out)
        tl.store(dlse_c + p_lse, b_dlse_c, mask=m_row)


@triton.jit
def load_lse(p, m_row):
    """The log-sum-exp in base 2; +inf, which makes every p zero, where there is no query or it sees no key."""
    b_lse = tl.load(p, mask=m_row, other=float("inf")) * (1 / LN2)
    return tl.where(b_lse == float("-inf"), float("inf"), b_lse)


@triton.jit
def _dq(
    b_q, b_dout, b_lse, b_delta, b_dq, k, v, k_stride, v_stride, low, high, o_m, lower, upper, nk, scale2, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    for n in tl.range(low, high, BLOCK_N, num_stages=STAGES):
        o_n = n + tl.arange(0, BLOCK_N)
        b_k = load_rows(k, n, k_stride, nk, BLOCK_N, D, BLOCK_D, MASKED, FAR)
        b_v = load_rows(v, n, v_stride, nk, BLOCK_N, D, BLOCK_D, MASKED, FAR)
        b_s = tl.dot(b_q, b_k.T, input_precision=PRECISION)
        b_dp = tl.dot(b_dout, b_v.T, input_precision=PRECISION)
        if SOFTCAP:
            b_s = tanh(b_s * cap)
        b_p = tl.exp2(b_s * scale2 - b_lse[:, None])
        if MASKED:
            b_p = tl.where(seen(o_m[:, None], o_n[None, :], lower, upper, nk, CAUSAL, WINDOW), b_p, 0.0)
        b_ds = b_p * (b_dp - b_delta[:, None])
        if SOFTCAP:
            b_ds = b_ds * (1.0 - b_s * b_s)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
    return b_dq


@triton.jit(do_not_specialize=["total_q", "total_k", "tiles", "left", "right"])
def dq_kernel(
    q, k, v, dout, lse, delta, dq, table, q_strides, k_strides, v_strides, d_strides,
    total_q, total_k, tiles, scale, scale2, cap, left, right,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0) // HEADS, (tl.program_id(0) % HEADS).to(tl.int64)
    q_token, q_head = q_strides
    k_token, k_head = k_strides
    v_token, v_head = v_strides
    d_token, d_head = d_strides
    q0, nq, k0, nk, block = locate(table, tile, tiles, total_q, total_k, PACKED, True)
    m = block * BLOCK_M
    if m >= nq:
        return
    o_m = m + tl.arange(0, BLOCK_M)
    m_row = o_m < nq
    column = tl.arange(0, BLOCK_D)
    b_q = load_rows(q + q0 * q_token + head * q_head, m, q_token, nq, BLOCK_M, D, BLOCK_D, True, FAR)
    b_dout = load_rows(dout + q0 * d_token + head * d_head, m, d_token, nq, BLOCK_M, D, BLOCK_D, True, FAR)
    p_lse = head * total_q + q0 + o_m
    b_lse = load_lse(lse + p_lse, m_row)
    b_delta = tl.load(delta + p_lse, mask=m_row, other=0.0)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    lower, upper = nk - nq, nk - nq
    if WINDOW:
        lower, upper = lower - left, upper + right
    every, some = key_range(m, nq, upper, nk, BLOCK_M, BLOCK_N, CAUSAL)
    p_k = k + k0 * k_token + head // GROUP * k_head
    p_v = v + k0 * v_token + head // GROUP * v_head
    full = 0
    if WINDOW:
        begin, full = key_begin(m, nq, lower, some, BLOCK_M, BLOCK_N)
        b_dq = _dq(
            b_q, b_dout, b_lse, b_delta, b_dq, p_k, p_v, k_token, v_token, begin, tl.minimum(full, some), o_m,
            lower, upper, nk, scale2, cap,
            D, BLOCK_D, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, 1, FAR,
        )  # fmt: skip
        every = tl.maximum(every, full)
    b_dq = _dq(
        b_q, b_dout, b_lse, b_delta, b_dq, p_k, p_v, k_token, v_token, full, every, o_m, lower, upper, nk, scale2, cap,
        D, BLOCK_D, BLOCK_N, False, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, FAR,
    )  # fmt: skip
    b_dq = _dq(
        b_q, b_dout, b_lse, b_delta, b_dq, p_k, p_v, k_token, v_token, every, some, o_m, lower, upper, nk, scale2, cap,
        D, BLOCK_D, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, 1, FAR,
    )  # fmt: skip
    p_dq = dq + (q0 + o_m).to(tl.int64)[:, None] * (HEADS * D) + head * D + column[None, :]
    tl.store(p_dq, (b_dq * scale).to(dq.dtype.element_ty), mask=m_row[:, None] & (column < D)[None, :])


@triton.jit(do_not_specialize=["total_q", "total_k", "tiles", "left", "right"])
def dkv_kernel(
    q, k, v, dout, lse, delta, dk, dv, table, q_strides, k_strides, v_strides, d_strides,
    total_q, total_k, tiles, scale, scale2, cap, left, right,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    tile, kv_head = tl.program_id(0) // KV_HEADS, (tl.program_id(0) % KV_HEADS).to(tl.int64)
    q_token, q_head = q_strides
    k_token, k_head = k_strides
    v_token, v_head = v_strides
    d_token, d_head = d_strides
    q0, nq, k0, nk, block = locate(table, tile, tiles, total_q, total_k, PACKED, False)
    n = block * BLOCK_N
    if n >= nk:
        return
    o_n = n + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    # Keys past the end are zeros: their rows of dk and dv are never stored, so they need no mask.
    b_k = load_rows(k + k0 * k_token + kv_head * k_head, n, k_token, nk, BLOCK_N, D, BLOCK_D, True, FAR)
    b_v = load_rows(v + k0 * v_token + kv_head * v_head, n, v_token, nk, BLOCK_N, D, BLOCK_D, True, FAR)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    lower, upper, end = nk - nq, nk - nq, nq
    if WINDOW:
        lower, upper = lower - left, upper + right
        end = tl.minimum(tl.maximum(n + BLOCK_N - lower, 0), nq)  # queries from here on see keys behind the block
    first = tl.maximum(n - upper, 0) // BLOCK_M * BLOCK_M if CAUSAL else 0
    # From here on all queries see the whole block, but for a window's beginning.
    every = tl.minimum(tl.cdiv(tl.maximum(n + BLOCK_N - 1 - upper, 0), BLOCK_M) * BLOCK_M, nq)
    # One loop over the blocks of queries of every head, so that loads run ahead from one head into the next.
    # Everything is transposed, [keys, queries]: p and ds are then left operands, which stay in registers.
    steps = tl.cdiv(tl.maximum(end - first, 0), BLOCK_M)
    for step in tl.range(0, steps * GROUP, num_stages=STAGES):
        head = kv_head * GROUP + step // tl.maximum(steps, 1)
        m = first + step % tl.maximum(steps, 1) * BLOCK_M
        o_m = m + tl.arange(0, BLOCK_M)
        b_q = load_rows(q + q0 * q_token + head * q_head, m, q_token, nq, BLOCK_M, D, BLOCK_D, True, FAR)
        b_dout = load_rows(dout + q0 * d_token + head * d_head, m, d_token, nq, BLOCK_M, D, BLOCK_D, True, FAR)
        p_lse = head * total_q + q0 + o_m
        b_lse = load_lse(lse + p_lse, o_m < nq)
        b_s = tl.dot(b_k, b_q.T, input_precision=PRECISION)
        if SOFTCAP:
            b_s = tanh(b_s * cap)
        b_p = tl.exp2(b_s * scale2 - b_lse[None, :])
        if WINDOW:
            if (m < every) | (m + BLOCK_M - 1 > n - lower):
                b_p = tl.where(seen(o_m[None, :], o_n[:, None], lower, upper, nk, True, True), b_p, 0.0)
        elif CAUSAL and m < every:
            b_p = tl.where(o_n[:, None] <= o_m[None, :] + upper, b_p, 0.0)
        b_dv = tl.dot(b_p.to(b_dout.dtype), b_dout, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, b_dout.T, input_precision=PRECISION)
        b_delta = tl.load(delta + p_lse, mask=o_m < nq, other=0.0)
        b_ds = b_p * (b_dp - b_delta[None, :])
        if SOFTCAP:
            b_ds = b_ds * (1.0 - b_s * b_s)
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    p_dk = (k0 + o_n).to(tl.int64)[:, None] * (KV_HEADS * D) + kv_head * D + column[None, :]
    m_out = (o_n < nk)[:, None] & (column < D)[None, :]
    tl.store(dk + p_dk, (b_dk * scale).to(dk.dtype.element_ty), mask=m_out)
    tl.store(dv + p_dk, b_dv.to(dv.dtype.element_ty), mask=m_out)


def backward(
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    out_c: torch.Tensor | None,
    lse_c: torch.Tensor | None,
    dq_table: torch.Tensor | None,
    dkv_table: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
    need_dq: bool,
    need_dkv: bool,
    need_carry: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv, and the carry's gradients; empty tensors for those that are not needed."""
    (tokens, heads, dim), (keys, kv_heads, _) = q.shape, k.shape
    wide, local = q.dtype == torch.float32, left >= 0 or bool(softcap)
    q, k, v, dout, out, lse = adjacent(q), adjacent(k), adjacent(v), adjacent(dout), out.contiguous(), _by_head(lse)
    dq = torch.empty(q.shape if need_dq else 0, dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty(k.shape if need_dkv else 0, dtype=q.dtype, device=q.device) for _ in range(2))
    dout_c = torch.empty(q.shape if need_carry else 0, dtype=torch.float32, device=q.device)
    dlse_c = torch.empty((heads, tokens) if need_carry else 0, dtype=torch.float32, device=q.device)
    delta = torch.empty_like(lse)
    block = triton.next_power_of_2(dim)
    if tokens:
        delta_kernel[(triton.cdiv(tokens, 32), heads)](
            dout, out, None if dlse is None else _by_head(dlse), delta, lse,
            out_c.contiguous() if need_carry else None, _by_head(lse_c) if need_carry else None, dout_c, dlse_c,
            dout.stride(0), dout.stride(1), tokens, HEADS=heads, D=dim, BLOCK_D=block, BLOCK_T=32,
            DLSE=dlse is not None, CARRY=need_carry, num_warps=4,
        )  # fmt: skip
    dout = dout.to(q.dtype)  # float32 with a carry
    strides = [x.stride()[:2] for x in (q, k, v, dout)]
    shape = {"GROUP": heads // kv_heads, "D": dim, "BLOCK_D": block, "PRECISION": precision(q)}
    shape |= flags(causal, left, softcap) | {"FAR": far(q, k, v, dout)}
    numbers = scale, (softcap or scale) * LOG2E, *optional(left, right, softcap, scale)
    if need_dq and tokens:
        config = choose("dq", dim, wide, local, q.device)
        tiles = triton.cdiv(tokens, config.queries) if dq_table is None else len(dq_table)
        dq_kernel[(tiles * heads,)](
            q, k, v, dout, lse, delta, dq, dq_table, *strides, tokens, keys, tiles, *numbers, HEADS=heads,
            PACKED=dq_table is not None, BLOCK_M=config.queries, BLOCK_N=config.keys, STAGES=config.stages,
            num_warps=config.warps, **shape,
        )  # fmt: skip
    if need_dkv and keys:
        config = choose("dkv", dim, wide, local, q.device)
        tiles = triton.cdiv(keys, config.keys) if dkv_table is None else len(dkv_table)
        dkv_kernel[(tiles * kv_heads,)](
            q, k, v, dout, lse, delta, dk, dv, dkv_table, *strides, tokens, keys, tiles, *numbers,
            KV_HEADS=kv_heads, PACKED=dkv_table is not None, BLOCK_M=config.queries, BLOCK_N=config.keys,
            STAGES=config.stages, num_warps=config.warps, **shape,
        )  # fmt: skip
    return dq, dk, dv, dout_c, dlse_c.t() if need_carry else dlse_c


def _by_head(x: torch.Tensor) -> torch.Tensor:
    """[T, H] as [H, T] in memory, as the kernels keep it."""
    return x.t().contiguous()
