"""What the forward and the backward kernels share."""

import torch
import triton
import triton.language as tl

from afn_kernels._triton_math import INTERPRETED

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def locate(table, tile, tiles, total_q, total_k, PACKED: tl.constexpr, REVERSED: tl.constexpr):
    """First query, queries, first key, keys and block of a tile; a tile nobody needs has no queries and no keys."""
    q0, k0 = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    nq, nk, block = total_q, total_k, tiles - 1 - tile if REVERSED else tile
    if PACKED:
        p_tile = table + tile * 5
        q0, k0 = tl.load(p_tile).to(tl.int64), tl.load(p_tile + 2).to(tl.int64)
        nq, nk, block = tl.load(p_tile + 1), tl.load(p_tile + 3), tl.load(p_tile + 4)
    return q0, nq, k0, nk, block


@triton.jit
def again(x):
    """An int32 that the compiler takes for another one than x: what is made from it is made here and not, before a loop
    and in registers that the loop needs, where x is."""
    if not INTERPRETED:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)
    return x


@triton.jit
def load_rows(
    p, start, stride, rows,
    BLOCK_T: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """[BLOCK_T, BLOCK_D] from row ``start`` of a matrix; zeros past ``rows`` (with MASKED) and past column D.

    Within a block, offsets of 32 bits are kept from step to step; with WIDE they are of 64 and are made at each step,
    which takes more instructions and fewer registers.
    """
    row, column = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    if WIDE:
        pointers = (p + column)[None, :] + ((start + row).to(tl.int64) * stride)[:, None]
    else:
        pointers = p + tl.cast(start, tl.int64) * stride + (row.to(tl.uint32)[:, None] * stride + column[None, :])
    if MASKED:
        b_x = tl.load(pointers, mask=(row < rows - start)[:, None] & (column < D)[None, :], other=0.0)
    elif D != BLOCK_D:
        b_x = tl.load(pointers, mask=(column < D)[None, :], other=0.0)
    else:
        b_x = tl.load(pointers)
    return b_x


@triton.jit
def key_range(m, rows, upper, nk, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr):
    """Where keys stop being visible to every query of a block, in whole blocks, and where to any.

    Where both are the same, the last block counts as one of the others: loops over those are never empty then.
    """
    if CAUSAL:
        every = tl.minimum(tl.maximum(m + 1 + upper, 0), nk)
        some = tl.minimum(tl.maximum(tl.minimum(m + BLOCK_M, rows) + upper, 0), nk)
    else:
        every, some = nk, nk
    return tl.maximum(every - 1, 0) // BLOCK_N * BLOCK_N, some


@triton.jit
def key_begin(m, rows, lower, some, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The first block of keys of which a window shows any, and the first that it shows to every query of a block."""
    begin = tl.minimum(tl.maximum(m + lower, 0), some) // BLOCK_N * BLOCK_N
    last = tl.minimum(m + BLOCK_M, rows) - 1
    return begin, tl.cdiv(tl.minimum(tl.maximum(last + lower, 0), some), BLOCK_N) * BLOCK_N


@triton.jit
def place(
    program, table, tiles, total_q, total_k, left, right, HEADS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PACKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Of a program with a block of queries: head, first query of the sequence, first of the block in it, queries, first
    key, keys, ``lower`` and ``upper`` of ``sight``, and the bounds of its keys: some see those from ``begin``, all see
    those from ``full`` to ``every``, and some those up to ``some``."""
    tile, head = program // HEADS, program % HEADS
    q0, nq, k0, nk, block = locate(table, tile, tiles, total_q, total_k, PACKED, True)
    m, lower, upper = block * BLOCK_M, nk - nq, nk - nq
    if WINDOW:
        lower, upper = lower - left, upper + right
    every, some = key_range(m, nq, upper, nk, BLOCK_M, BLOCK_N, CAUSAL)
    begin, full = 0, 0
    if WINDOW:
        begin, full = key_begin(m, nq, lower, some, BLOCK_M, BLOCK_N)
        every = tl.maximum(every, full)
    return head, q0, m, nq, k0, nk, lower, upper, begin, full, every, some


@triton.jit
def sight(o_m, lower, upper, nk, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """The first and the last key that each of the queries o_m sees: with CAUSAL none past its own plus ``upper``, with
    WINDOW none before its own plus ``lower``."""
    first, last = 0, nk - 1
    if WINDOW:
        first, last = o_m + lower, tl.minimum(o_m + upper, nk - 1)
    elif CAUSAL:  # of keys that are there, but for queries that are not
        last = o_m + upper
    return first, last


@triton.jit
def seen(o_n, first, last, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Which of the keys o_n queries see that see those from ``first`` to ``last``, [M, N]."""
    m_key = o_n[None, :] <= last[:, None] if CAUSAL else (o_n <= last)[None, :]
    if WINDOW:
        m_key = m_key & (o_n[None, :] >= first[:, None])
    return m_key


def adjacent(x: torch.Tensor) -> torch.Tensor:
    """x with adjacent elements in its last axis. Copies only if it must."""
    return x if x.stride(-1) == 1 else x.contiguous()


def alike(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """k and v with adjacent elements in their last axis and with the same strides, so that they share their addresses'
    arithmetic. Copies only if it must."""
    if k.stride() == v.stride() and k.stride(-1) == 1:
        return k, v
    return k.contiguous(), v.contiguous()


def optional(left: int, right: int, softcap: float, scale: float) -> tuple[float | None, int | None, int | None]:
    """The kernels' ``cap``, ``left`` and ``right``; no arguments at all for what a call does not have."""
    return scale / softcap if softcap else None, *((None, None) if left < 0 else (left, right))


def flags(causal: bool, left: int, softcap: float) -> dict[str, bool]:
    """What the kernels are compiled for: keys hidden after a query, also before it, and scores that are capped."""
    return {"CAUSAL": causal or left >= 0, "WINDOW": left >= 0, "SOFTCAP": bool(softcap)}


def precision(x: torch.Tensor) -> str:
    """How float32 operands are multiplied; no matter to half precision."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def offsets64(lean: bool, *tensors: torch.Tensor) -> bool:
    """Whether offsets within a block are of 64 bits: ``lean`` wants it, or a block of up to 256 rows needs it."""
    return lean or any(x.stride(0) >= 2**22 for x in tensors)
