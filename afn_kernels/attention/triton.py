"""The forward: a program per block of queries and head, over full blocks of keys first and masked ones last."""

import torch
import triton
import triton.language as tl

from afn_kernels._triton_math import INTERPRETED, exp2, tanh
from afn_kernels.attention.config import choose
from afn_kernels.attention.tiles import (
    LN2,
    LOG2E,
    adjacent,
    again,
    alike,
    flags,
    load_rows,
    offsets64,
    optional,
    place,
    precision,
    seen,
    sight,
)


def _unless_one(count: int) -> tuple[str, str]:
    """PTX that multiplies ``count`` registers by as many others, which are at most 1, and constraints for them. A warp
    whose others are all 1 goes past the products. The tree is for ptxas, which drops what it finds in it twice."""
    products, factors = ([f"${first + i}" for i in range(count)] for first in (0, 2 * count))
    code = ["{", ".reg .pred any;", f".reg .b32 all<{count}>;"]
    code += [f"mov.b32 all{i}, {factor};" for i, factor in enumerate(factors)]
    while count > 1:
        count //= 2
        code += [f"and.b32 all{i}, all{2 * i}, all{2 * i + 1};" for i in range(count)]
    code += ["setp.ne.b32 any, all0, 0x3F800000;", "vote.sync.any.pred any, any, 0xffffffff;", "@!any bra SAME;"]
    code += [f"mul.f32 {product}, {product}, {factor};" for product, factor in zip(products, factors, strict=True)]
    constraints = ["=f" for _ in products] + [str(i) for i in range(len(products))] + ["f" for _ in factors]
    return " ".join([*code, "SAME:", "}"]), ",".join(constraints)


# By how much in base 2 a row may outgrow its maximum: p is at most 2^8 then, and as exact as below 1.
LAZY = tl.constexpr(8.0)
COUNT = tl.constexpr(32)
PTX, CONSTRAINTS = (tl.constexpr(x) for x in _unless_one(COUNT.value))


@triton.jit
def _times(b_acc, b_keep, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr):
    """b_acc · b_keep, which is 1 where a row's maximum stays: nearly always, and then nothing is multiplied."""
    if INTERPRETED or PRECISION == "ieee" or BLOCK_D < 64:
        b_acc *= b_keep[:, None]
    else:
        b_acc = tl.inline_asm_elementwise(
            PTX, CONSTRAINTS, [b_acc, b_keep[:, None]], dtype=tl.float32, is_pure=True, pack=COUNT
        )
    return b_acc


@triton.jit
def _attend(
    b_q, b_acc, b_m, b_l, k, v, kv_stride, low, high, m, lower, upper, nk, scale2, cap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys from ``low`` to ``high``: accumulator, running maximum and sum."""
    for n in tl.range(low, high, BLOCK_N, num_stages=STAGES):
        o_n = n + tl.arange(0, BLOCK_N)
        b_k = load_rows(k, n, kv_stride, nk, BLOCK_N, D, BLOCK_D, MASKED, WIDE)
        b_s = tl.dot(b_q, b_k.T, input_precision=PRECISION)
        if SOFTCAP:
            b_s = tanh(b_s * cap)
        if MASKED:
            o_m = m + tl.arange(0, BLOCK_M)
            first, last = sight(o_m, lower, upper, nk, CAUSAL, WINDOW)
            m_key = seen(o_n, first, last, CAUSAL, WINDOW)
            b_s = tl.where(m_key, b_s, float("-inf"))
        b_new = tl.max(b_s, 1) * scale2
        b_new = tl.where(b_new > b_m + LAZY, b_new, b_m)
        # A row that has seen no key yet has a maximum of -inf, from which nothing may be subtracted.
        b_safe = tl.where(b_new == float("-inf"), 0.0, b_new) if MASKED else b_new
        b_keep = exp2(b_m - b_safe)
        b_acc, b_l, b_m = _times(b_acc, b_keep, PRECISION, BLOCK_D), b_l * b_keep, b_new
        b_p = exp2(b_s * scale2 - b_safe[:, None])
        b_l += tl.sum(b_p, 1)
        b_v = load_rows(v, n, kv_stride, nk, BLOCK_N, D, BLOCK_D, MASKED, WIDE)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)
    return b_acc, b_m, b_l


@triton.jit
def _rows(q0, m, nq, head, total_q, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where the log-sum-exps and the outputs of a block of queries stand, with their masks."""
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    m_row = row < nq - m
    p_lse = head.to(tl.int64) * total_q + q0 + m
    p_out = (q0 + m).to(tl.int64) * (HEADS * D) + head * D
    offsets = row[:, None] * (HEADS * D) + column[None, :]
    return p_lse, row, m_row, p_out, offsets, m_row[:, None] & (column < D)[None, :]


@triton.jit(do_not_specialize=["total_q", "total_k", "tiles", "left", "right"])
def forward_kernel(
    q, k, v, out, lse, out_c, lse_c, table, q_strides, kv_strides,
    total_q, total_k, tiles, scale2, cap, left, right,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PACKED: tl.constexpr, CARRY: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    q_token, q_head = q_strides
    kv_token, kv_step = kv_strides
    tl.assume((q_token >= 0) & (q_head >= 0) & (kv_token >= 0) & (kv_step >= 0))
    head, q0, m, nq, k0, nk, lower, upper, begin, full, every, some = place(
        tl.program_id(0), table, tiles, total_q, total_k, left, right, HEADS, BLOCK_M, BLOCK_N, PACKED, CAUSAL, WINDOW
    )
    if m >= nq:
        return
    b_q = load_rows(q + q0 * q_token + head.to(tl.int64) * q_head, m, q_token, nq, BLOCK_M, D, BLOCK_D, True, WIDE)
    if CARRY:
        p_lse, row, m_row, p_out, offsets, m_out = _rows(q0, m, nq, head, total_q, HEADS, D, BLOCK_M, BLOCK_D)
        b_m = tl.load(lse_c + p_lse + row, mask=m_row, other=float("-inf")) * (1 / LN2)
        b_l = tl.where(b_m == float("-inf"), 0.0, 1.0)
        b_acc = tl.load(out_c + p_out + offsets, mask=m_out, other=0.0)
        b_acc = tl.where((b_l > 0)[:, None], b_acc, 0.0)
    else:
        b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        b_l = tl.zeros([BLOCK_M], tl.float32)
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    kv = k0 * kv_token + (head // GROUP).to(tl.int64) * kv_step
    # The last keys come first, in a step at least: behind a loop that may be empty the compiler lets products wait for
    # each other.
    end = tl.maximum(some, every + 1)
    tl.assume(end > every)
    b_acc, b_m, b_l = _attend(
        b_q, b_acc, b_m, b_l, k + kv, v + kv, kv_token, every, end, m, lower, upper, nk, scale2, cap,
        D, BLOCK_D, BLOCK_M, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, WIDE,
    )  # fmt: skip
    if WINDOW:
        b_acc, b_m, b_l = _attend(
            b_q, b_acc, b_m, b_l, k + kv, v + kv, kv_token, begin, tl.minimum(full, some), m, lower, upper, nk,
            scale2, cap,
            D, BLOCK_D, BLOCK_M, BLOCK_N, True, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, WIDE,
        )  # fmt: skip
    head, q0, m, nq, k0, nk, lower, upper, begin, full, every, some = place(
        again(tl.program_id(0)), table, tiles, total_q, total_k, left, right,
        HEADS, BLOCK_M, BLOCK_N, PACKED, CAUSAL, WINDOW,
    )  # fmt: skip
    kv = k0 * kv_token + (head // GROUP).to(tl.int64) * kv_step
    b_acc, b_m, b_l = _attend(
        b_q, b_acc, b_m, b_l, k + kv, v + kv, kv_token, full, every, m, lower, upper, nk, scale2, cap,
        D, BLOCK_D, BLOCK_M, BLOCK_N, False, CAUSAL, WINDOW, SOFTCAP, PRECISION, STAGES, WIDE,
    )  # fmt: skip
    head, q0, m, nq, k0, nk, lower, upper, begin, full, every, some = place(
        again(tl.program_id(0)), table, tiles, total_q, total_k, left, right,
        HEADS, BLOCK_M, BLOCK_N, PACKED, CAUSAL, WINDOW,
    )  # fmt: skip
    p_lse, row, m_row, p_out, offsets, m_out = _rows(q0, m, nq, head, total_q, HEADS, D, BLOCK_M, BLOCK_D)
    empty = b_l == 0
    b_l = tl.where(empty, 1.0, b_l)
    b_out = b_acc * (1.0 / b_l)[:, None]
    tl.store(out + p_out + offsets, b_out.to(out.dtype.element_ty), mask=m_out)
    tl.store(lse + p_lse + row, tl.where(empty, float("-inf"), b_m * LN2 + tl.log(b_l)), mask=m_row)


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
    q, (k, v) = adjacent(q), alike(k, v)
    tiles = triton.cdiv(tokens, config.queries) if table is None else len(table)
    forward_kernel[(tiles * heads,)](
        q, k, v, out, lse, out_c.contiguous() if carry else None, lse_c.t().contiguous() if carry else None, table,
        q.stride()[:2], k.stride()[:2],
        tokens, len(k), tiles, (softcap or scale) * LOG2E, *optional(left, right, softcap, scale),
        HEADS=heads, GROUP=heads // k.shape[1], D=dim, BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_M=config.queries, BLOCK_N=config.keys, PACKED=table is not None, CARRY=carry, PRECISION=precision(q),
        **flags(causal, left, softcap), STAGES=config.stages, WIDE=offsets64(config.lean, q, k), num_warps=config.warps,
    )  # fmt: skip
    return out, lse.t()
