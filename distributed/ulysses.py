"""Heads for tokens and back: one all-to-all each way (Ulysses)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from afn_distributed.comm import Comm
from afn_distributed.plan import Plan
from torch import Tensor

# Source: Jacobs et al., 2023, arXiv:2309.14509; uneven heads and shared KV heads are handled here.


class _AllToAll(torch.autograd.Function):
    """Parts to all ranks; gradients go back the way they came."""

    @staticmethod
    def forward(ctx, comm: Comm, shapes: Sequence[Sequence[int]], *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.comm, ctx.shapes = comm, [part.shape for part in parts]
        return tuple(comm.all_to_all(parts, shapes))

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.comm.all_to_all(grads, ctx.shapes)


def all_to_all(comm: Comm, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """``Comm.all_to_all`` with gradients: part i [...] goes to rank i; returns what came from each."""
    return _AllToAll.apply(comm, shapes, *parts)


def scatter_heads(q: Tensor, k: Tensor, v: Tensor, plan: Plan, comm: Comm, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """A rank's rows with all heads to all rows of its shard with its heads, in one all-to-all.

    A KV head that several ranks read goes to all of them, and its gradients come back as one sum.

    Args:
        q: [rows, Hq, D] of the rank's rows.
        k, v: [rows, Hk, D].
        plan: of the batch.
        comm: the Ulysses group.
        rank: this rank among all that share the batch.

    Returns:
        q [shard, own query heads, D], k and v [shard, own KV heads, D].
    """
    if comm.size == 1:
        return q, k, v
    dim = q.shape[-1]
    parts = [torch.cat((q[:, _s(h.q)], k[:, _s(h.kv)], v[:, _s(h.kv)]), 1) for h in plan.heads]
    own = plan.heads[comm.rank]
    heads = len(own.q) + 2 * len(own.kv)
    shapes = [(plan.part_rows(rank - comm.rank + peer), heads, dim) for peer in range(comm.size)]
    return torch.cat(all_to_all(comm, parts, shapes)).split((len(own.q), len(own.kv), len(own.kv)), 1)


def gather_heads(out: Tensor, plan: Plan, comm: Comm, rank: int) -> Tensor:
    """All rows of a shard with a rank's heads [shard, own query heads, D] to its rows with all heads [rows, Hq, D]."""
    if comm.size == 1:
        return out
    rows = [plan.part_rows(rank - comm.rank + peer) for peer in range(comm.size)]
    shapes = [(rows[comm.rank], len(heads.q), out.shape[-1]) for heads in plan.heads]
    return torch.cat(all_to_all(comm, out.split(rows), shapes), 1)


def _s(heads: range) -> slice:
    return slice(heads.start, heads.stop)
