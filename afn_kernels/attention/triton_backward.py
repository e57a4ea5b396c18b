"""The backward: dq by blocks of queries, dk and dv by blocks of keys over all query heads of a group. No atomics."""

import torch
import triton
import triton.language as tl

from afn_kernels._triton_math import exp2, tanh
from afn_kernels.attention.config import choose
from afn_kernels.attention.tiles import (
    LN2,
    LOG2E,
    adjacent,
    again,
    alike,
    flags,
    load_rows,
    locate,
    offsets64,
    optional,
    place,
    precision,
    seen,
    sight,
)

PADDING = 128  # rows behind the last query that a block of queries may reach


@triton.jit(do_not_specialize=["tokens", "padded"])
def delta_kernel(
    dout, out, dlse, stats, lse, out_c, lse_c, dout_c, dlse_c, d_token, d_head, tokens, padded,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    DLSE: tl.constexpr, CARRY: tl.constexpr,
):  # fmt: skip
    """Two numbers of every query, for one head, and the carry's gradients.

    The first is its log-sum-exp in base 2; +inf, which makes every p zero, where there is no query or it sees no key.
    The second is delta = rowsum(dout · out) − dlse, what every dp is compared with.
    """
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
    b_lse = tl.load(lse + p_lse, mask=m_row, other=float("-inf"))
    # A query that sees no key has no share in any gradient, whatever arrives for it: NaN from a logaddexp, say.
    none = b_lse == float("-inf")
    m_padded = token < padded
    p_pair = stats + (head * padded + token) * 2
    tl.store(p_pair, tl.where(none, float("inf"), b_lse * (1 / LN2)), mask=m_padded)
    tl.store(p_pair + 1, tl.where(none, 0.0, b_delta), mask=m_padded)
    if CARRY:
        b_lse_c = tl.load(lse_c + p_lse, mask=m_row, other=float("-inf"))
        # A carry over no keys has no share, nor has one beside no keys at all.
        b_p = tl.where(b_lse_c == float("-inf"), 0.0, tl.exp(b_lse_c - b_lse))
        b_out_c = tl.load(out_c + p_out, mask=m_out, other=0.0)
        b_dlse_c = tl.where(b_p > 0, b_p * (tl.sum(b_dout * (b_out_c - b_out), 1) + b_dlse), 0.0)
        tl.store(dout_c + p_out, b_p[:, None] * b_dout, mask=m_out)
        tl.store(dlse_c + p_lse, b_dlse_c, mask=m_row)


@triton.jit
def _pairs(stats, BLOCK: tl.constexpr):
    """lse and delta of BLOCK queries. There is room behind the last one: no mask."""
    return tl.split(tl.load(stats + tl.arange(0, 2 * BLOCK)).reshape(BLOCK, 2))


@triton.jit
def _dq(
    b_q, b_dout, b_lse, b_delta, b_dq, k, v, kv_stride, low, high, first, last, nk, scale2, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    for n in tl.range(low, high, BLOCK_N, num_stages=STAGES):
        o_n = n + tl.arange(0, BLOCK_N)
        b_k = load_rows(k, n, kv_stride, nk, BLOCK_N, D, BLOCK_D, MASKED, WIDE)
        b_v = load_rows(v, n, kv_stride, nk, BLOCK_N, D, BLOCK_D, MASKED, WIDE)
        b_s = tl.dot(b_q, b_k.T, input_precision=PRECISION)
        b_dp = tl.dot(b_dout, b_v.T, input_precision=PRECISION)
        if SOFTCAP:
            b_s = tanh(b_s * cap)
        b_p = exp2(b_s * scale2 - b_lse[:, None])
        if MASKED:
            b_p = tl.where(seen(o_n, first, last, CAUSAL, WINDOW), b_p, 0.0)
        b_ds = b_p * (b_dp - b_delta[:, None])
        if SOFTCAP:
            b_ds = b_ds * (1.0 - b_s * b_s)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
    return b_dq


@triton.jit(do_not_specialize=["total_q", "total_k", "tiles", "padded", "left", "right"])
def dq_kernel(
    q, k, v, dout, stats, dq, table, q_strides, kv_strides, d_strides,
    total_q, total_k, tiles, padded, scale, scale2, cap, left, right,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    q_token, q_head = q_strides
    kv_token, kv_step = kv_strides
    d_token, d_head = d_strides
    head, q0, m, nq, k0, nk, lower, upper, begin, full, every, some = place(
        tl.program_id(0), table, tiles, total_q, total_k, left, right, HEADS, BLOCK_M, BLOCK_N, PACKED, CAUSAL, WINDOW
    )
    if m >= nq:
        return
    head = head.to(tl.int64)
    o_m = m + tl.arange(0, BLOCK_M)
    b_q = load_rows(q + q0 * q_token + head * q_head, m, q_token, nq, BLOCK_M, D, BLOCK_D, True, WIDE)
    b_dout = load_rows(dout + q0 * d_token + head * d_head, m, d_token, nq, BLOCK_M, D, BLOCK_D, True, WIDE)
    b_lse, b_delta = _pairs(stats + (head * padded + q0 + m) * 2, BLOCK_M)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    p_k = k + k0 * kv_token + head // GROUP * kv_step
    p_v = v + k0 * kv_token + head // GROUP * kv_step
    first, last = sight(o_m, lower, upper, nk, CAUSAL, WINDOW)
    end = tl.maximum(some, every + 1)  # a step at least, as in the forward
    tl.assume(end > every)
    b_dq = _dq(
        b_q, b_dout, b_lse, b_delta, b_dq, p_k, p_v, kv_token, every, end, first, last, nk, scale2, cap,
        D, BLOCK_D, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, WIDE,
    )  # fmt: skip
    if WINDOW:
        b_dq = _dq(
            b_q, b_dout, b_lse, b_delta, b_dq, p_k, p_v, kv_token, begin, tl.minimum(full, some), first, last,
            nk, scale2, cap, D, BLOCK_D, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, WIDE,
        )  # fmt: skip
    b_dq = _dq(
        b_q, b_dout, b_lse, b_delta, b_dq, p_k, p_v, kv_token, full, every, first, last, nk, scale2, cap,
        D, BLOCK_D, BLOCK_N, False, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, WIDE,
    )  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    p_dq = dq + (q0 + o_m).to(tl.int64)[:, None] * (HEADS * D) + head * D + column[None, :]
    tl.store(p_dq, (b_dq * scale).to(dq.dtype.element_ty), mask=(o_m < nq)[:, None] & (column < D)[None, :])


@triton.jit
def _dkv(
    b_k, b_v, b_dk, b_dv, q, dout, stats, q_token, q_head, d_token, d_head, padded,
    first, before, full, after, n, lower, upper, nq, scale2, cap,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Adds ``before`` blocks of queries from ``first`` and ``after`` blocks from ``full``, of every head of a group.

    One loop over them all, so that loads run ahead from one head into the next. Everything is transposed, [keys,
    queries]: p and ds are then left operands, which stay in registers.
    """
    head, block = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for _ in tl.range(0, (before + after) * GROUP, num_stages=STAGES):
        tl.assume(head >= 0)
        m = first + block * BLOCK_M
        if MASKED:
            m = tl.where(block < before, m, full + (block - before) * BLOCK_M)
        o_m = m + tl.arange(0, BLOCK_M)
        b_q = load_rows(q + head.to(tl.int64) * q_head, m, q_token, nq, BLOCK_M, D, BLOCK_D, MASKED, WIDE)
        b_dout = load_rows(dout + head.to(tl.int64) * d_head, m, d_token, nq, BLOCK_M, D, BLOCK_D, MASKED, WIDE)
        b_lse, b_delta = _pairs(stats + (head.to(tl.int64) * padded + m) * 2, BLOCK_M)
        b_s = tl.dot(b_k, b_q.T, input_precision=PRECISION)
        if SOFTCAP:
            b_s = tanh(b_s * cap)
        if MASKED:
            b_lse = tl.where(o_m < nq, b_lse, float("inf"))
        b_p = exp2(b_s * scale2 - b_lse[None, :])
        if CAUSAL and MASKED:
            m_key = (n - m - upper + tl.arange(0, BLOCK_N))[:, None] <= tl.arange(0, BLOCK_M)[None, :]
            if WINDOW:
                m_key = m_key & ((n - m - lower + tl.arange(0, BLOCK_N))[:, None] >= tl.arange(0, BLOCK_M)[None, :])
            b_p = tl.where(m_key, b_p, 0.0)
        b_dv = tl.dot(b_p.to(b_dout.dtype), b_dout, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, b_dout.T, input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        if SOFTCAP:
            b_ds = b_ds * (1.0 - b_s * b_s)
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
        block += 1
        head = tl.where(block == before + after, head + 1, head)
        block = tl.where(block == before + after, 0, block)
    return b_dk, b_dv


@triton.jit
def _place_keys(
    program, table, tiles, total_q, total_k, left, right, KV_HEADS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PACKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Of a program with a block of keys: KV head, first query of the sequence, queries, first key, first of the block
    in it, keys, ``lower`` and ``upper`` of ``sight``, and bounds of its queries: all from ``every`` to ``full`` see
    all of the block, ``before`` blocks of them from ``first`` and ``after`` blocks from ``full`` see some of it."""
    tile, kv_head = program // KV_HEADS, (program % KV_HEADS).to(tl.int64)
    q0, nq, k0, nk, block = locate(table, tile, tiles, total_q, total_k, PACKED, False)
    n, lower, upper, end = block * BLOCK_N, nk - nq, nk - nq, nq
    if WINDOW:
        lower, upper = lower - left, upper + right
        end = tl.minimum(tl.maximum(n + BLOCK_N - lower, 0), nq)  # queries from here on see keys behind the block
    first = tl.maximum(n - upper, 0) // BLOCK_M * BLOCK_M if CAUSAL else 0
    every = tl.cdiv(tl.maximum(n + BLOCK_N - 1 - upper, 0), BLOCK_M) * BLOCK_M if CAUSAL else 0
    full = tl.minimum(nq, tl.maximum(n - lower + 1, 0)) if WINDOW else nq
    full = tl.maximum(full // BLOCK_M * BLOCK_M, every)
    before = tl.cdiv(tl.maximum(tl.minimum(every, end) - first, 0), BLOCK_M)
    after = tl.cdiv(tl.maximum(end - full, 0), BLOCK_M)
    return kv_head, q0, nq, k0, n, nk, lower, upper, first, before, every, full, after


@triton.jit(do_not_specialize=["total_q", "total_k", "tiles", "padded", "left", "right"])
def dkv_kernel(
    q, k, v, dout, stats, dk, dv, table, q_strides, kv_strides, d_strides,
    total_q, total_k, tiles, padded, scale, scale2, cap, left, right,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    q_token, q_head = q_strides
    kv_token, kv_step = kv_strides
    d_token, d_head = d_strides
    tl.assume((q_token >= 0) & (q_head >= 0) & (d_token >= 0) & (d_head >= 0) & (padded >= 0))
    kv_head, q0, nq, k0, n, nk, lower, upper, first, before, every, full, after = _place_keys(
        tl.program_id(0), table, tiles, total_q, total_k, left, right,
        KV_HEADS, BLOCK_M, BLOCK_N, PACKED, CAUSAL, WINDOW,
    )  # fmt: skip
    if n >= nk:
        return
    # Keys past the end are zeros: their rows of dk and dv are never stored, so they need no mask.
    kv = k0 * kv_token + kv_head * kv_step
    b_k = load_rows(k + kv, n, kv_token, nk, BLOCK_N, D, BLOCK_D, True, WIDE)
    b_v = load_rows(v + kv, n, kv_token, nk, BLOCK_N, D, BLOCK_D, True, WIDE)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    head = kv_head * GROUP
    b_dk, b_dv = _dkv(
        b_k, b_v, b_dk, b_dv, q + q0 * q_token + head * q_head, dout + q0 * d_token + head * d_head,
        stats + (head * padded + q0) * 2, q_token, q_head, d_token, d_head, padded,
        every, (full - every) // BLOCK_M, 0, 0, n, lower, upper, nq, scale2, cap,
        GROUP, D, BLOCK_D, BLOCK_M, BLOCK_N, False, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, WIDE,
    )  # fmt: skip
    kv_head, q0, nq, k0, n, nk, lower, upper, first, before, every, full, after = _place_keys(
        again(tl.program_id(0)), table, tiles, total_q, total_k, left, right,
        KV_HEADS, BLOCK_M, BLOCK_N, PACKED, CAUSAL, WINDOW,
    )  # fmt: skip
    head = kv_head * GROUP
    b_dk, b_dv = _dkv(
        b_k, b_v, b_dk, b_dv, q + q0 * q_token + head * q_head, dout + q0 * d_token + head * d_head,
        stats + (head * padded + q0) * 2, q_token, q_head, d_token, d_head, padded,
        first, before, full, after, n, lower, upper, nq, scale2, cap,
        GROUP, D, BLOCK_D, BLOCK_M, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, WIDE,
    )  # fmt: skip
    kv_head, q0, nq, k0, n, nk, lower, upper, first, before, every, full, after = _place_keys(
        again(tl.program_id(0)), table, tiles, total_q, total_k, left, right,
        KV_HEADS, BLOCK_M, BLOCK_N, PACKED, CAUSAL, WINDOW,
    )  # fmt: skip
    row, column = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    p_dk = (k0 + n) * (KV_HEADS * D) + kv_head * D
    offsets = row[:, None] * (KV_HEADS * D) + column[None, :]
    m_out = (row < nk - n)[:, None] & (column < D)[None, :]
    tl.store(dk + p_dk + offsets, (b_dk * scale).to(dk.dtype.element_ty), mask=m_out)
    tl.store(dv + p_dk + offsets, b_dv.to(dv.dtype.element_ty), mask=m_out)


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
    q, (k, v), dout, out, lse = adjacent(q), alike(k, v), adjacent(dout), out.contiguous(), _by_head(lse)
    dq = torch.empty(q.shape if need_dq else 0, dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty(k.shape if need_dkv else 0, dtype=q.dtype, device=q.device) for _ in range(2))
    dout_c = torch.empty(q.shape if need_carry else 0, dtype=torch.float32, device=q.device)
    dlse_c = torch.empty((heads, tokens) if need_carry else 0, dtype=torch.float32, device=q.device)
    padded = triton.cdiv(tokens, PADDING) * PADDING + PADDING
    stats = lse.new_empty(heads, padded, 2)
    block = triton.next_power_of_2(dim)
    if tokens:
        delta_kernel[(triton.cdiv(padded, 32), heads)](
            dout, out, None if dlse is None else _by_head(dlse), stats, lse,
            out_c.contiguous() if need_carry else None, _by_head(lse_c) if need_carry else None, dout_c, dlse_c,
            dout.stride(0), dout.stride(1), tokens, padded, HEADS=heads, D=dim, BLOCK_D=block, BLOCK_T=32,
            DLSE=dlse is not None, CARRY=need_carry, num_warps=4,
        )  # fmt: skip
    dout = dout.to(q.dtype)  # float32 with a carry
    strides = [x.stride()[:2] for x in (q, k, dout)]
    shape = {"GROUP": heads // kv_heads, "D": dim, "BLOCK_D": block, "PRECISION": precision(q)}
    shape |= flags(causal, left, softcap)
    numbers = scale, (softcap or scale) * LOG2E, *optional(left, right, softcap, scale)
    if need_dq and tokens:
        config = choose("dq", dim, wide, local, q.device)
        tiles = triton.cdiv(tokens, config.queries) if dq_table is None else len(dq_table)
        dq_kernel[(tiles * heads,)](
            q, k, v, dout, stats, dq, dq_table, *strides, tokens, keys, tiles, padded, *numbers, HEADS=heads,
            PACKED=dq_table is not None, BLOCK_M=config.queries, BLOCK_N=config.keys, STAGES=config.stages,
            WIDE=offsets64(config.lean, q, k, dout), num_warps=config.warps, **shape,
        )  # fmt: skip
    if need_dkv and keys:
        config = choose("dkv", dim, wide, local, q.device)
        tiles = triton.cdiv(keys, config.keys) if dkv_table is None else len(dkv_table)
        dkv_kernel[(tiles * kv_heads,)](
            q, k, v, dout, stats, dk, dv, dkv_table, *strides, tokens, keys, tiles, padded, *numbers,
            KV_HEADS=kv_heads, PACKED=dkv_table is not None, BLOCK_M=config.queries, BLOCK_N=config.keys,
            STAGES=config.stages, WIDE=offsets64(config.lean, q, k, dout), num_warps=config.warps, **shape,
        )  # fmt: skip
    return dq, dk, dv, dout_c, dlse_c.t() if need_carry else dlse_c


def _by_head(x: torch.Tensor) -> torch.Tensor:
    """[T, H] as [H, T] in memory, as the kernels keep it."""
    return x.t().contiguous()
