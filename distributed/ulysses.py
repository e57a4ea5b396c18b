"""Ulysses attention: one all-to-all from rows with all heads to all rows with some heads, and one back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import afn_kernels as ak
from afn_distributed.comm import Comm
from afn_distributed.plan import Plan

# Source: Jacobs et al., 2023, arXiv:2309.14509; extended to uneven heads and to KV heads that several ranks read.


class _AllToAll(torch.autograd.Function):
    """``Comm.all_to_all``; its backward is the reverse all-to-all."""

    @staticmethod
    def forward(ctx, comm: Comm, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
        ctx.comm, ctx.sizes, ctx.wanted = comm, sizes, wanted
        return comm.all_to_all(send, sizes, wanted)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.comm.all_to_all(grad.contiguous(), ctx.wanted, ctx.sizes), None, None


def all_to_all(comm: Comm, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """``Comm.all_to_all`` with a gradient: sizes[i] elements of a flat tensor to rank i, wanted[i] from rank i."""
    return _AllToAll.apply(comm, send, sizes, wanted)


def scatter_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    comm: Comm,
    rank: int,
    *,
    positions: Tensor | None = None,
    inv_freq: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchanges rows for heads: from a rank's rows with all heads to all rows of its shard with the rank's heads.

    One copy, then one all-to-all. A KV head that several ranks read is sent to each; its gradient is the sum of theirs.

    Args:
        q: [rows, Hq, D] queries of the rank's rows.
        k, v: [rows, Hk, D].
        plan: of the batch.
        comm: the Ulysses group.
        rank: of this rank in the sequence-parallel group.
        positions: [rows] float32; rotates q and k in the same copy, as ``afn_kernels.rotary`` does.
        inv_freq: [D / 2] float32, with ``positions``.

    Returns:
        q [shard, own query heads, D], k and v [shard, own KV heads, D]: views of one buffer, in which each row has its
        q, k and v heads side by side.
    """
    if comm.size == 1:
        if positions is None:
            return q, k, v
        assert inv_freq is not None, "positions come with inv_freq"
        return (*ak.rotary(q, k, positions, inv_freq), v)
    dim, rows = q.shape[2], _rows(plan, comm, rank)
    each = [len(heads.q) + 2 * len(heads.kv) for heads in plan.heads]
    own = plan.heads[comm.rank]
    send = ak.pack_heads(q, k, v, _ranges(plan), positions=positions, inv_freq=inv_freq)
    sizes = [rows[comm.rank] * heads * dim for heads in each]
    received = all_to_all(comm, send, sizes, [count * each[comm.rank] * dim for count in rows])
    received = received.view(sum(rows), each[comm.rank], dim)
    q, k, v = received.split((len(own.q), len(own.kv), len(own.kv)), 1)
    return q, k, v


def gather_heads(out: Tensor, plan: Plan, comm: Comm, rank: int) -> Tensor:
    """Exchanges heads for rows, the reverse of ``scatter_heads``: one all-to-all, then one copy.

    Args:
        out: [shard, own query heads, D] attention of all rows of the shard with the rank's heads.
        plan: of the batch.
        comm: the Ulysses group.
        rank: of this rank in the sequence-parallel group.

    Returns:
        [rows, Hq, D] of the rank's rows with all heads.
    """
    if comm.size == 1:
        return out
    dim, rows = out.shape[2], _rows(plan, comm, rank)
    own = len(plan.heads[comm.rank].q)
    wanted = [rows[comm.rank] * len(heads.q) * dim for heads in plan.heads]
    received = all_to_all(comm, out.reshape(-1), [count * own * dim for count in rows], wanted)
    return ak.unpack_heads(received, _ranges(plan), dim)


def _rows(plan: Plan, comm: Comm, rank: int) -> list[int]:
    """Rows of each rank of the Ulysses group."""
    return [plan.part_rows(rank - comm.rank + peer) for peer in range(comm.size)]


def _ranges(plan: Plan) -> tuple[tuple[int, int, int, int], ...]:
    """Query and KV heads of each Ulysses rank as ``afn_kernels.pack_heads`` takes them."""
    return tuple((heads.q.start, heads.q.stop, heads.kv.start, heads.kv.stop) for heads in plan.heads)
