"""What the forward and the backward kernels share."""

import torch
import triton
import triton.language as tl

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
def load_rows(
    p, start, stride, rows,
    BLOCK_T: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """[BLOCK_T, BLOCK_D] from row ``start`` of a matrix; zeros past ``rows`` (with MASKED) and past column D."""
    row, column = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    near = row.to(tl.int64) if FAR else row  # offsets within a block in 32 bits save registers
    pointers = p + tl.cast(start, tl.int64) * stride + (near[:, None] * stride + column[None, :])
    if MASKED:
        b_x = tl.load(pointers, mask=(row < rows - start)[:, None] & (column < D)[None, :], other=0.0)
    elif D != BLOCK_D:
        b_x = tl.load(pointers, mask=(column < D)[None, :], other=0.0)
    else:
        b_x = tl.load(pointers)
    return b_x


@triton.jit
def key_range(m, rows, upper, nk, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr):
    """Where keys stop being visible to every query of a block, in whole blocks, and where to any."""
    if CAUSAL:
        every = tl.minimum(tl.maximum(m + 1 + upper, 0), nk)
        some = tl.minimum(tl.maximum(tl.minimum(m + BLOCK_M, rows) + upper, 0), nk)
    else:
        every, some = nk, nk
    return every // BLOCK_N * BLOCK_N, some


@triton.jit
def key_begin(m, rows, lower, some, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The first block of keys of which a window shows any, and the first that it shows to every query of a block."""
    begin = tl.minimum(tl.maximum(m + lower, 0), some) // BLOCK_N * BLOCK_N
    last = tl.minimum(m + BLOCK_M, rows) - 1
    return begin, tl.cdiv(tl.minimum(tl.maximum(last + lower, 0), some), BLOCK_N) * BLOCK_N


@triton.jit
def seen(o_m, o_n, lower, upper, nk, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Which of the keys o_n [1, N] each of the queries o_m [M, 1] sees: with CAUSAL none past its own plus ``upper``,
    with WINDOW none before its own plus ``lower``."""
    m_key = o_n < nk
    if CAUSAL:
        m_key = m_key & (o_n <= o_m + upper)
    if WINDOW:
        m_key = m_key & (o_n >= o_m + lower)
    return m_key


def adjacent(x: torch.Tensor) -> torch.Tensor:
    """x with adjacent elements in its last axis. Copies only if it must."""
    return x if x.stride(-1) == 1 else x.contiguous()


def optional(left: int, right: int, softcap: float, scale: float) -> tuple[float | None, int | None, int | None]:
    """The kernels' ``cap``, ``left`` and ``right``; no arguments at all for what a call does not have."""
    return scale / softcap if softcap else None, *((None, None) if left < 0 else (left, right))


def flags(causal: bool, left: int, softcap: float) -> dict[str, bool]:
    """What the kernels are compiled for: keys hidden after a query, also before it, and scores that are capped."""
    return {"CAUSAL": causal or left >= 0, "WINDOW": left >= 0, "SOFTCAP": bool(softcap)}


def precision(x: torch.Tensor) -> str:
    """How float32 operands are multiplied; no matter to half precision."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def far(*tensors: torch.Tensor) -> bool:
    """Whether offsets within a block of up to 256 rows need 64 bits."""
    return any(x.stride(0) >= 2**22 for x in tensors)
