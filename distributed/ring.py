"""Attention of a shard's queries over the keys of all shards, which come from the ranks that hold them (ring)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from afn_distributed.comm import Comm
from afn_distributed.plan import Exchange, Heads, Plan
from torch import Tensor

import afn_kernels as ak

TRANSPORTS = ("ring", "gather")
# Source: Liu et al., 2023, arXiv:2310.01889. Here a rank sends its keys straight to those that read them, and only the
# rows that they read: nothing is passed on, and a step without work moves nothing.


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    comm: Comm,
    heads: Heads,
    *,
    scale: float | None = None,
    transport: str = "ring",
    impl: str = "auto",
) -> Tensor:
    """Causal attention within each document, over all shards.

    Args:
        q: [shard, own query heads, D].
        k, v: [shard, own KV heads, D].
        plan: of the batch.
        comm: the ring group.
        heads: of this rank.
        scale: of the scores; default D^(−1/2).
        transport: "ring" has the next keys under way while it computes; "gather" fetches all of them first.
        impl: of ``afn_kernels.attention``.

    Returns:
        [shard, own query heads, D] in the dtype of q.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"transport {transport!r} is none of {', '.join(TRANSPORTS)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if comm.size == 1:
        own = plan.exchange(0, 0, q.device)
        keys, values = (spread(x, heads) for x in (k, v))
        return q if own is None else ak.attention(q, keys, values, **options_of(own, comm, scale, impl))
    return _Ring.apply(q, k, v, plan, comm, heads, float(scale), transport, impl)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, plan, comm, heads, scale, transport, impl):
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        out, lse = q.new_zeros(q.shape, dtype=wide), q.new_full(q.shape[:2], float("-inf"), dtype=wide)
        for exchange, keys, values in fetched(k, v, plan, comm, transport):
            keys, values = (spread(x, heads) for x in (keys, values))
            out, lse = ak.attention(q, keys, values, carry=(out, lse), **options_of(exchange, comm, scale, impl))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.facts = plan, comm, heads, scale, transport, impl
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out, lse = ctx.saved_tensors
        plan, comm, heads, scale, transport, impl = ctx.facts
        wide = lse.dtype
        dq = torch.zeros(q.shape, dtype=wide, device=q.device)
        dkv = torch.zeros((2, *k.shape), dtype=wide, device=k.device)
        away: dict[int, Tensor] = {}
        for exchange, keys, values in fetched(k, v, plan, comm, transport):
            options = options_of(exchange, comm, scale, impl)
            spread_keys, spread_values = (spread(x, heads) for x in (keys, values))
            grads = ak.attention_backward(dout, q, spread_keys, spread_values, out, lse, **options)
            dq += grads[0]
            here = torch.stack([gathered_heads(x.to(wide), heads) for x in grads[1:]])
            if exchange.source == comm.rank:
                dkv.index_add_(1, exchange.rows, here)
            else:
                away[exchange.source] = here
        for rows, theirs in sent_back(away, dkv, plan, comm):
            dkv.index_add_(1, rows, theirs)
        return dq.to(q.dtype), dkv[0].to(k.dtype), dkv[1].to(v.dtype), *[None] * 6


def options_of(exchange: Exchange, comm: Comm, scale: float, impl: str) -> dict:
    boundaries = {"cu_seqlens_q": exchange.cu_q, "cu_seqlens_k": exchange.cu_k}
    return {**boundaries, "causal": exchange.source == comm.rank, "scale": scale, "impl": impl}


def fetched(k: Tensor, v: Tensor, plan: Plan, comm: Comm, transport: str) -> Iterator[tuple[Exchange, Tensor, Tensor]]:
    """What there is to attend to: this rank's own keys first, then those of the others as they come in.

    Step t brings keys from t ranks back while others get theirs from t ranks on. With "gather" all steps are one, which
    ends before anything is computed.
    """
    steps = [partial(step, k, v, plan, comm, t) for t in range(1, comm.size)]
    if transport == "gather":
        steps = [partial(together, steps)]
    sends, receives = steps[0]()
    wait = comm.exchange(sends, receives)
    if transport == "gather":
        wait()
    own = plan.exchange(comm.rank, comm.rank, k.device)
    if own is not None:
        yield own, k, v
    for following in [*steps[1:], None]:
        if transport == "ring":
            wait()
        here = receives
        if following is not None:
            sends, receives = following()
            wait = comm.exchange(sends, receives)
        for source, kv in here.items():
            yield plan.exchange(comm.rank, source, k.device), kv[0], kv[1]


def together(steps: list[Callable]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Several steps as one."""
    sends, receives = zip(*(one() for one in steps), strict=True)
    return tuple({peer: x for part in parts for peer, x in part.items()} for parts in (sends, receives))


def step(k: Tensor, v: Tensor, plan: Plan, comm: Comm, t: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Keys and values to send t ranks on, and room for those from t ranks back: [2, rows, KV heads, D] each."""
    to, source = (comm.rank + t) % comm.size, (comm.rank - t) % comm.size
    sends, receives = {}, {}
    wanted = plan.exchange(to, comm.rank, k.device)
    if wanted is not None:
        sends[to] = torch.stack((k[wanted.rows], v[wanted.rows]))
    coming = plan.exchange(comm.rank, source, k.device)
    if coming is not None:
        receives[source] = k.new_empty((2, len(coming.rows), *k.shape[1:]))
    return sends, receives


def sent_back(away: dict[int, Tensor], dkv: Tensor, plan: Plan, comm: Comm) -> list[tuple[Tensor, Tensor]]:
    """Gradients of others' keys and values to them; returns what came for this rank's, and for which of its rows."""
    peers = [peer for peer in range(comm.size) if peer != comm.rank]
    readers = {peer: plan.exchange(peer, comm.rank, dkv.device) for peer in peers}
    rows = {peer: reader.rows for peer, reader in readers.items() if reader is not None}
    room = {peer: dkv.new_empty((2, len(some), *dkv.shape[2:])) for peer, some in rows.items()}
    comm.exchange(away, room)()
    return [(rows[peer], room[peer]) for peer in rows]


def spread(x: Tensor, heads: Heads) -> Tensor:
    """KV heads as grouped attention wants them: one for each query head where they are not read evenly."""
    return x if heads.even else x[:, list(heads.reads)]


def gathered_heads(x: Tensor, heads: Heads) -> Tensor:
    """Gradients of what ``spread`` made, to those of the KV heads."""
    if heads.even:
        return x
    found = x.new_zeros((len(x), len(heads.kv), x.shape[-1]))
    return found.index_add_(1, torch.tensor(heads.reads, device=x.device), x)
