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
def key_range(m, rows, shift, nk, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr):
    """Where keys stop being visible to every query of a block, in whole blocks, and where to any."""
    if CAUSAL:
        every = tl.minimum(tl.maximum(m + 1 + shift, 0), nk)
        some = tl.minimum(tl.maximum(tl.minimum(m + BLOCK_M, rows) + shift, 0), nk)
    else:
        every, some = nk, nk
    return every // BLOCK_N * BLOCK_N, some


def adjacent(x: torch.Tensor) -> torch.Tensor:
    """x with adjacent elements in its last axis. Copies only if it must."""
    return x if x.stride(-1) == 1 else x.contiguous()


def precision(x: torch.Tensor) -> str:
    """How float32 operands are multiplied; no matter to half precision."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def far(*tensors: torch.Tensor) -> bool:
    """Whether offsets within a block of up to 256 rows need 64 bits."""
    return any(x.stride(0) >= 2**22 for x in tensors)
