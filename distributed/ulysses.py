"""Heads for tokens and back: one all-to-all each way (Ulysses)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import afn_kernels as ak
from afn_distributed.comm import Comm
from afn_distributed.plan import Plan

# Source: Jacobs et al., 2023, arXiv:2309.14509; uneven heads and shared KV heads are handled here.


class _AllToAll(torch.autograd.Function):
    """Messages to all ranks; gradients go back the way they came."""

    @staticmethod
    def forward(ctx, comm: Comm, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
        ctx.comm, ctx.sizes, ctx.wanted = comm, sizes, wanted
        return comm.all_to_all(send, sizes, wanted)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.comm.all_to_all(grad.contiguous(), ctx.wanted, ctx.sizes), None, None


def all_to_all(comm: Comm, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """``Comm.all_to_all`` with gradients: sizes[i] elements of a flat tensor go to rank i; returns what came, flat."""
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
    """A rank's rows with all heads to all rows of its shard with its heads, in one all-to-all and one copy before it.

    A KV head that several ranks read goes to all of them, and its gradients come back as one sum.

    Args:
        q: [rows, Hq, D] of the rank's rows.
        k, v: [rows, Hk, D].
        plan: of the batch.
        comm: the Ulysses group.
        rank: this rank among all that share the batch.
        positions: [rows] float32, to rotate q and k by on the way, as ``afn_kernels.rotary`` does.
        inv_freq: [D / 2] float32.

    Returns:
        q [shard, own query heads, D], k and v [shard, own KV heads, D]: views of what came, rows of all three heads
        after one another.
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
    came = all_to_all(comm, send, sizes, [count * each[comm.rank] * dim for count in rows])
    came = came.view(sum(rows), each[comm.rank], dim)
    q, k, v = came.split((len(own.q), len(own.kv), len(own.kv)), 1)
    return q, k, v


def gather_heads(out: Tensor, plan: Plan, comm: Comm, rank: int) -> Tensor:
    """All rows of a shard with a rank's heads [shard, own query heads, D] to its rows with all heads [rows, Hq, D].

    One all-to-all and one copy after it.
    """
    if comm.size == 1:
        return out
    dim, rows = out.shape[2], _rows(plan, comm, rank)
    own = len(plan.heads[comm.rank].q)
    wanted = [rows[comm.rank] * len(heads.q) * dim for heads in plan.heads]
    came = all_to_all(comm, out.reshape(-1), [count * own * dim for count in rows], wanted)
    return ak.unpack_heads(came, _ranges(plan), dim)


def _rows(plan: Plan, comm: Comm, rank: int) -> list[int]:
    """Tokens that each rank of a Ulysses group computes with."""
    return [plan.part_rows(rank - comm.rank + peer) for peer in range(comm.size)]


def _ranges(plan: Plan) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((heads.q.start, heads.q.stop, heads.kv.start, heads.kv.stop) for heads in plan.heads)
