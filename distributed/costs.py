"""What sequence parallelism costs each rank: pairs that it attends to, bytes that it keeps on their way and sends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np

from afn_distributed.plan import Plan, make_plan
from afn_distributed.ring import transport_of


@dataclass(frozen=True)
class SequenceLoad:
    """The work of a plan; vectors are [ranks], in the order r · ulysses + u.

    Args:
        plan: of the batch.
        element_size: bytes of an element of q, k and v.
        pairs: [r, s] query-key pairs of one head of ring rank r's queries and ring rank s's keys.
        keys: [r, s] keys that ring rank r reads of ring rank s.
    """

    plan: Plan
    element_size: int
    pairs: np.ndarray
    keys: np.ndarray

    @cached_property
    def rows(self) -> np.ndarray:
        """Tokens whose linear layers a rank computes."""
        return np.array([self.plan.part_rows(rank) for rank in range(self.plan.ranks)])

    @cached_property
    def shard_rows(self) -> np.ndarray:
        """Tokens of its ring rank's shard, over which it attends with its own heads."""
        return np.repeat(self.plan.rows, self.plan.ulysses)

    @cached_property
    def q(self) -> np.ndarray:
        return np.tile([len(heads.q) for heads in self.plan.heads], self.plan.ring)

    @cached_property
    def kv(self) -> np.ndarray:
        return np.tile([len(heads.kv) for heads in self.plan.heads], self.plan.ring)

    @cached_property
    def spread(self) -> np.ndarray:
        """KV heads as the kernel reads them: repeated where query heads do not read them evenly."""
        spread = [len(heads.kv) if heads.even else len(heads.q) for heads in self.plan.heads]
        return np.tile(spread, self.plan.ring)

    @property
    def transport(self) -> str:
        """The ring's choice: "ring" or "gather"."""
        return transport_of(self.plan, self.element_size)

    def steps(self) -> list[list[int]]:
        """Offsets t of the ring ranks r − t whose keys arrive together, of those with keys that anyone reads."""
        ring = self.plan.ring
        read = [t for t in range(1, ring) if any(self.keys[r, (r - t) % ring] for r in range(ring))]
        return [[t] for t in read] if self.transport == "ring" else [read] * bool(read)

    def attended(self, t: int) -> np.ndarray:
        """Query-key pairs, over all own heads, with the keys of ring rank r − t."""
        r = np.arange(self.plan.ring)
        return np.repeat(self.pairs[r, (r - t) % self.plan.ring], self.plan.ulysses) * self.q

    def key_bytes(self, t: int) -> np.ndarray:
        """Keys and values received from ring rank r − t; their gradients, in float32, go back."""
        r = np.arange(self.plan.ring)
        read = np.repeat(self.keys[r, (r - t) % self.plan.ring], self.plan.ulysses)
        return read * self.kv * 2 * self.plan.head_dim * self.element_size

    def head_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        """Sent by a rank in the all-to-all of q, k and v, and in that of the output."""
        u, size = self.plan.ulysses, self.element_size * self.plan.head_dim
        every, q = (self.q + 2 * self.kv)[:u], self.q[:u]
        rows = self.rows.reshape(-1, u)
        out = size * rows * (every.sum() - every)
        home = size * (rows.sum(1, keepdims=True) - rows) * q
        return out.reshape(-1), home.reshape(-1)

    @property
    def imbalance(self) -> float:
        """Attention of the busiest rank over the mean."""
        work = np.repeat(self.pairs.sum(1), self.plan.ulysses) * self.q
        return float(work.max() / max(work.mean(), 1))


@lru_cache(maxsize=256)
def sequence_load(
    lengths: tuple[int, ...],
    ulysses: int,
    ring: int,
    heads: int = 28,
    kv_heads: int = 4,
    head_dim: int = 128,
    element_size: int = 2,
) -> SequenceLoad:
    """The load of a packed batch of documents with these many tokens.

    Raises:
        ValueError: heads that so many Ulysses ranks cannot share.
    """
    cu_seqlens = [0, *accumulate(lengths)]
    plan = make_plan(cu_seqlens, ulysses=ulysses, ring=ring, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    pairs, keys = np.zeros((2, ring, ring))
    for r in range(ring):
        for s in range(ring):
            exchange = plan.exchange(r, s)
            if exchange is not None:
                pairs[r, s], keys[r, s] = exchange.pairs, len(exchange.rows)
    return SequenceLoad(plan, element_size, pairs, keys)


def attention_bytes(plan: Plan, rank: int, element_size: int) -> dict[str, dict[str, int]]:
    """Bytes that a rank sends to other ranks in one call of ``sp_attention``.

    Args:
        plan: of the batch.
        rank: r · ulysses + u.
        element_size: bytes of an element of q, k and v.

    Returns:
        {"ulysses" or "ring": {"forward" or "backward": bytes}}.
    """
    r, u = divmod(rank, plan.ulysses)
    own, dim = plan.heads[u], plan.head_dim * element_size
    rows = [plan.part_rows(r * plan.ulysses + peer) for peer in range(plan.ulysses)]
    found = {"ulysses": {"forward": 0, "backward": 0}, "ring": {"forward": 0, "backward": 0}}
    for peer, theirs in enumerate(plan.heads):
        if peer != u:
            to_them = rows[u] * len(theirs.q), rows[u] * (len(theirs.q) + 2 * len(theirs.kv))
            of_mine = rows[peer] * len(own.q), rows[peer] * (len(own.q) + 2 * len(own.kv))
            found["ulysses"]["forward"] += dim * (to_them[1] + of_mine[0])
            found["ulysses"]["backward"] += dim * (to_them[0] + of_mine[1])
    each = 2 * len(own.kv) * plan.head_dim
    for peer in range(plan.ring):
        reader, source = plan.exchange(peer, r), plan.exchange(r, peer)
        if peer != r and reader is not None:
            for name in ("forward", "backward"):
                found["ring"][name] += each * element_size * len(reader.rows)
        if peer != r and source is not None:
            # Gradients of keys are sent in float32, or in float64 for float64 inputs.
            found["ring"]["backward"] += each * max(4, element_size) * len(source.rows)
    return found
