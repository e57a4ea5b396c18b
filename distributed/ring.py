"""Ring attention: a shard's queries attend to the keys of all shards, which other ranks send."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import afn_kernels as ak
from afn_distributed.comm import Comm
from afn_distributed.plan import Exchange, Heads, Plan

TRANSPORTS = ("auto", "ring", "gather")
GATHERED = 64 << 20  # bytes of keys and values up to which "auto" gathers; a guess, not measured
# Source: Liu et al., 2023, arXiv:2310.01889. Unlike there, a rank sends its keys directly to the ranks that read them,
# and only the rows they read: no rank forwards keys, and a step without work sends nothing.


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    comm: Comm,
    heads: Heads,
    *,
    scale: float | None = None,
    transport: str = "auto",
    impl: str = "auto",
) -> Tensor:
    """Causal attention within each document, over all shards.

    Partial outputs of the shards are merged by their log-sum-exp, in float32 (float64 for float64 inputs).

    Args:
        q: [shard, own query heads, D] queries of this rank's shard.
        k, v: [shard, own KV heads, D].
        plan: of the batch.
        comm: the ring group.
        heads: of this rank.
        scale: of the scores; default D^(−1/2).
        transport: "ring" holds the keys of two steps and synchronises at every step; "gather" holds all keys and
            synchronises once; "auto" gathers if the keys of the whole batch are few. Both receive while they attend to
            the rank's own keys.
        impl: of ``afn_kernels.attention``.

    Returns:
        [shard, own query heads, D] in the dtype of q.

    Raises:
        ValueError: an unknown transport.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"transport {transport!r} is none of {', '.join(TRANSPORTS)}")
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if comm.size == 1:
        own = plan.exchange(0, 0, q.device)
        if own is None:
            return q
        keys, values = (spread(x, heads) for x in (k, v))
        out = ak.attention(q, keys, values, **options_of(own, q, comm, scale, impl))
        assert isinstance(out, Tensor)
        return out
    if transport == "auto":
        transport = transport_of(plan, k.element_size())
    return _RingAttention.apply(q, k, v, plan, comm, heads, scale, transport, impl)


def transport_of(plan: Plan, element_size: int) -> str:
    """What "auto" chooses: by the size of the whole batch, so that all ranks choose the same."""
    most = 2 * plan.total * max(len(part.kv) for part in plan.heads) * plan.head_dim * element_size
    return "gather" if most <= GATHERED else "ring"


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, plan, comm, heads, scale, transport, impl):
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        out, lse = q.new_zeros(q.shape, dtype=wide), q.new_full(q.shape[:2], float("-inf"), dtype=wide)
        for _, parts in fetched(k, v, plan, comm, transport):
            for exchange, keys, values in parts:
                keys, values = (spread(x, heads) for x in (keys, values))
                options = options_of(exchange, q, comm, scale, impl)
                out, lse = ak.attention(q, keys, values, carry=(out, lse), **options)
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
        arrived = _nothing
        for offsets, parts in fetched(k, v, plan, comm, transport):
            away: dict[int, Tensor] = {}
            for exchange, keys, values in parts:
                options = options_of(exchange, q, comm, scale, impl)
                spread_keys, spread_values = (spread(x, heads) for x in (keys, values))
                grads = ak.attention_backward(dout, q, spread_keys, spread_values, out, lse, **options)
                dq += grads[0]
                here = torch.stack([gathered_heads(x.to(wide), heads) for x in grads[1:]])
                if exchange.source == comm.rank:
                    dkv.index_add_(1, exchange.rows, here)
                else:
                    away[exchange.source] = here
            arrived()  # gradients of the previous step, which were sent while this step was computed
            arrived = sent_back(away, dkv, plan, comm, offsets)
        arrived()
        return dq.to(q.dtype), dkv[0].to(k.dtype), dkv[1].to(v.dtype), *[None] * 6


def options_of(exchange: Exchange, q: Tensor, comm: Comm, scale: float, impl: str) -> dict:
    """Arguments of ``afn_kernels.attention`` for an exchange; only a rank's own keys need a causal mask."""
    causal, key = exchange.source == comm.rank, (q.shape[-1], q.dtype, impl)
    if key not in exchange.schedules:
        sizes = {"total_q": len(q), "total_k": len(exchange.rows), "head_dim": q.shape[-1], "dtype": q.dtype}
        with torch.enable_grad():  # kept for later steps, which may be trained: with what a backward needs
            exchange.schedules[key] = ak.attention_schedule(
                exchange.cu_q, exchange.cu_k, **sizes, causal=causal, return_lse=True, impl=impl
            )
    return {"causal": causal, "scale": scale, "schedule": exchange.schedules[key], "impl": impl}


Part = tuple[Exchange, Tensor, Tensor]


def fetched(k: Tensor, v: Tensor, plan: Plan, comm: Comm, transport: str) -> Iterator[tuple[list[int], list[Part]]]:
    """Keys and values to attend to, step by step: this rank's own first, then those of other ranks.

    A step is a list of offsets t: this rank receives from rank − t and sends to rank + t. "ring" has a step for each
    offset, and a step's keys are received while the step before is computed; "gather" has all offsets in one step.

    Yields:
        The step's offsets, and (exchange, keys, values) for each source rank with keys that this rank reads.
    """
    others = range(1, comm.size)
    steps = [[t] for t in others] if transport == "ring" else [list(others)]
    wait, coming = fetch(k, v, plan, comm, steps[0])
    own = plan.exchange(comm.rank, comm.rank, k.device)
    yield [], [] if own is None else [(own, k, v)]
    for offsets, following in zip(steps, [*steps[1:], None], strict=True):
        wait()
        received = coming
        if following is not None:
            wait, coming = fetch(k, v, plan, comm, following)
        parts = ((plan.exchange(comm.rank, source, k.device), kv) for source, kv in received.items())
        yield offsets, [(exchange, kv[0], kv[1]) for exchange, kv in parts if exchange is not None]


def fetch(k: Tensor, v: Tensor, plan: Plan, comm: Comm, offsets: list[int]) -> tuple[Callable, dict[int, Tensor]]:
    """Starts the messages of a step's keys and values; returns their wait, and [2, rows, Hk, D] by source rank."""
    sends, receives = {}, {}
    for t in offsets:
        to, source = (comm.rank + t) % comm.size, (comm.rank - t) % comm.size
        wanted = plan.exchange(to, comm.rank, k.device)
        if wanted is not None:
            sends[to] = torch.stack((k[wanted.rows], v[wanted.rows]))
        coming = plan.exchange(comm.rank, source, k.device)
        if coming is not None:
            receives[source] = k.new_empty((2, len(coming.rows), *k.shape[1:]))
    return comm.exchange(sends, receives), receives


def sent_back(away: dict[int, Tensor], dkv: Tensor, plan: Plan, comm: Comm, offsets: list[int]) -> Callable[[], None]:
    """Starts sending a step's gradients of keys and values to the ranks that own the keys.

    Args:
        away: [2, rows, Hk, D] gradients by the rank that owns the keys.
        dkv: [2, shard, Hk, D] gradients of this rank's own keys, added to in place.
        plan: of the batch.
        comm: the ring group.
        offsets: of the step.

    Returns:
        A function that waits for the gradients of this rank's keys from their readers and adds them to ``dkv``.
    """
    peers = [(comm.rank + t) % comm.size for t in offsets]
    readers = {peer: plan.exchange(peer, comm.rank, dkv.device) for peer in peers}
    rows = {peer: reader.rows for peer, reader in readers.items() if reader is not None}
    received = {peer: dkv.new_empty((2, len(some), *dkv.shape[2:])) for peer, some in rows.items()}
    wait = comm.exchange(away, received)

    def arrived() -> None:
        wait()
        for peer, some in rows.items():
            dkv.index_add_(1, some, received[peer])

    return arrived


def _nothing() -> None:
    pass


def spread(x: Tensor, heads: Heads) -> Tensor:
    """KV heads for grouped-query attention: repeated once per query head if they are not read evenly."""
    if heads.even:
        return x
    # Views put together, not an index: a list of numbers would be copied to the device in every layer.
    return torch.cat([x[:, i : i + 1].expand(-1, count, -1) for i, count in enumerate(readers(heads))], 1)


def gathered_heads(x: Tensor, heads: Heads) -> Tensor:
    """Backward of ``spread``: sums the gradients of repeated heads."""
    if heads.even:
        return x
    return torch.stack([part.sum(1) for part in x.split(readers(heads), 1)], 1)


def readers(heads: Heads) -> list[int]:
    """How many query heads read each KV head; ``heads.reads`` never falls."""
    return [heads.reads.count(i) for i in range(len(heads.kv))]
