"""Which block of which sequence every program takes, longest first, worked out on the device without waiting for it."""

import torch
import triton
import triton.language as tl


@triton.jit
def _more(nq, nk, blocks, work, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, KEYS: tl.constexpr):
    """How many blocks of a sequence have more than ``work`` to do. Work grows with the block, or falls with KEYS."""
    if KEYS:
        found = tl.minimum(blocks, tl.cdiv(tl.maximum(nk - work, 0), BLOCK)) if CAUSAL else blocks + work * 0
        return tl.where(nq > work, found, 0)
    below = tl.maximum(tl.minimum(tl.maximum(work - nk + nq, 0) // BLOCK, blocks - 1), 0) if CAUSAL else work * 0
    return tl.where(nk > work, blocks - below, 0)


@triton.jit
def _lengths(cu, s, live, total):
    start = tl.minimum(tl.maximum(tl.load(cu + s, mask=live, other=0), 0), total)
    end = tl.minimum(tl.maximum(tl.load(cu + s + 1, mask=live, other=0), 0), total)
    return start, tl.maximum(end - start, 0)


@triton.jit
def _schedule(
    cu_q, cu_k, schedule, sequences, total_q, total_k, tiles,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, KEYS: tl.constexpr, TILES: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    seq = tl.zeros([TILES], tl.int32)
    first = tl.zeros([TILES], tl.int32)
    seen = tl.full([], 0, tl.int32)
    for s0 in range(0, sequences, SEQUENCES):
        s = s0 + tl.arange(0, SEQUENCES)
        live = s < sequences
        _, nq = _lengths(cu_q, s, live, total_q)
        _, nk = _lengths(cu_k, s, live, total_k)
        blocks = tl.cdiv(nk if KEYS else nq, BLOCK)
        end = seen + tl.cumsum(blocks, 0)
        past = (end[None, :] <= tile[:, None]) & live[None, :]
        seq += tl.sum(past.to(tl.int32), 1)
        first = tl.maximum(first, tl.max(tl.where(past, end[None, :], 0), 1))
        seen += tl.sum(blocks, 0)
    valid = tile < seen
    block = tl.where(valid, tile - first, 0)
    q0, nq = _lengths(cu_q, seq, valid, total_q)
    k0, nk = _lengths(cu_k, seq, valid, total_k)
    if KEYS:
        work = tl.minimum(nq, nk - block * BLOCK) if CAUSAL else nq
        before = tl.where(work == nq, block, 0)
    else:
        work = tl.maximum(nk - nq + tl.minimum((block + 1) * BLOCK, nq), 0) if CAUSAL else nk
        before = tl.where(work == 0, block, 0) if CAUSAL else block
    # Rank: blocks with more work, then equal ones that come earlier.
    for s0 in range(0, sequences, SEQUENCES):
        s = s0 + tl.arange(0, SEQUENCES)
        live = s < sequences
        _, its_nq = _lengths(cu_q, s, live, total_q)
        _, its_nk = _lengths(cu_k, s, live, total_k)
        blocks = tl.cdiv(its_nk if KEYS else its_nq, BLOCK)[None, :]
        nq_1S, nk_1S, work_T1 = its_nq[None, :], its_nk[None, :], work[:, None]
        more = _more(nq_1S, nk_1S, blocks, work_T1, BLOCK, CAUSAL, KEYS)
        at_least = tl.where(work_T1 > 0, _more(nq_1S, nk_1S, blocks, work_T1 - 1, BLOCK, CAUSAL, KEYS), blocks)
        before += tl.sum(tl.where(s[None, :] < seq[:, None], at_least, more), 1)
    slot = tl.where(valid, before, tile)
    p_slot = schedule + slot * 5
    inside = (tile < tiles) & (slot < tiles)
    tl.store(p_slot, q0, mask=inside)
    tl.store(p_slot + 1, nq, mask=inside)
    tl.store(p_slot + 2, k0, mask=inside)
    tl.store(p_slot + 3, nk, mask=inside)
    tl.store(p_slot + 4, block, mask=inside)


@triton.jit(do_not_specialize=["sequences", "total_q", "total_k", "tiles"])
def query_schedule_kernel(
    cu_q, cu_k, schedule, sequences, total_q, total_k, tiles,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, TILES: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    _schedule(cu_q, cu_k, schedule, sequences, total_q, total_k, tiles, BLOCK, CAUSAL, False, TILES, SEQUENCES)


@triton.jit(do_not_specialize=["sequences", "total_q", "total_k", "tiles"])
def key_schedule_kernel(
    cu_q, cu_k, schedule, sequences, total_q, total_k, tiles,
    BLOCK: tl.constexpr, CAUSAL: tl.constexpr, TILES: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    _schedule(cu_q, cu_k, schedule, sequences, total_q, total_k, tiles, BLOCK, CAUSAL, True, TILES, SEQUENCES)


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


def schedule(
    cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None,
    total_q: int,
    total_k: int,
    block: int,
    causal: bool,
    keys: bool,
) -> tuple[torch.Tensor | None, int]:
    """[tiles, 5] int32: first query, queries, first key, keys, block; and a bound on the tiles known without the GPU.

    Args:
        cu_q: [N + 1] boundaries of the queries; None is one sequence, whose tiles need no schedule.
        cu_k: [N + 1] boundaries of the keys.
        total_q: queries in all.
        total_k: keys in all.
        block: queries of a tile; keys, with ``keys``.
        causal: whether a tile's work depends on where it stands in its sequence.
        keys: tiles are blocks of keys, not of queries.
    """
    total = total_k if keys else total_q
    if cu_q is None:
        return None, -(-total // block)
    sequences = len(cu_q) - 1
    tiles = min(total // block + sequences, total)  # a sequence without rows has no tile, and no tile is empty
    table = torch.empty(tiles, 5, dtype=torch.int32, device=cu_q.device)
    if tiles:
        kernel = key_schedule_kernel if keys else query_schedule_kernel
        kernel[(triton.cdiv(tiles, 64),)](
            cu_q.contiguous(), cu_k.contiguous(), table, sequences, total_q, total_k, tiles,
            BLOCK=block, CAUSAL=causal, TILES=64, SEQUENCES=64, num_warps=4,
        )  # fmt: skip
    return table, tiles
