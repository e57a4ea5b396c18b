"""Which tokens and heads of a packed batch each rank has, and what ranks exchange: a function of lengths alone.

P = ulysses · ring ranks share a batch. Ring rank r has a shard of its tokens: whole documents and pieces of documents,
in the order of the batch. Ulysses rank u of ring rank r computes with the u-th part of the shard's rows, and attends
over the whole shard with the u-th part of the heads. There is no padding: parts differ by one row if need be.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from afn_kernels._kept import made_alone

if TYPE_CHECKING:
    from afn_kernels.attention.schedule import AttentionSchedule

SCHEMES = ("balanced", "documents", "zigzag", "contiguous")
EVEN = 1.02  # largest load ÷ mean at which the balanced scheme stops cutting documents
SHIFT = 7919  # a prime larger than any 2 · ring, so that multiples of it take every remainder modulo 2 · ring


@dataclass(frozen=True)
class Heads:
    """Query heads of a Ulysses rank, and the KV heads that they read.

    Args:
        q: query heads.
        kv: KV heads.
        reads: for each query head the index of its KV head in ``kv``.
    """

    q: range
    kv: range
    reads: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether each KV head has the same number of consecutive query heads, as grouped-query attention needs."""
        each = len(self.q) // len(self.kv)
        return self.reads == tuple(i // each for i in range(each * len(self.kv))) and each * len(self.kv) == len(self.q)


def split_heads(heads: int, kv_heads: int, ranks: int) -> tuple[Heads, ...]:
    """Splits query heads over ranks as evenly as possible; a KV head goes to every rank that reads it.

    Args:
        heads: query heads.
        kv_heads: KV heads.
        ranks: Ulysses ranks.

    Returns:
        The heads of each rank.

    Raises:
        ValueError: more ranks than heads; query heads that are no multiple of the KV heads.
    """
    if heads % kv_heads or not 1 <= ranks <= heads:
        raise ValueError(f"{heads} query and {kv_heads} KV heads cannot be split over {ranks} ranks")
    group, found = heads // kv_heads, []
    for rank in range(ranks):
        q = range(-(-heads * rank // ranks), -(-heads * (rank + 1) // ranks))
        kv = range(q.start // group, (q.stop - 1) // group + 1)
        found.append(Heads(q, kv, tuple(h // group - kv.start for h in q)))
    return tuple(found)


@dataclass(frozen=True)
class Exchange:
    """A block of attention: one shard's queries over those keys of one shard that any of them attends to.

    Args:
        source: the ring rank that has the keys.
        rows: [keys] int64 rows of the source's shard.
        cu_q, cu_k: [N + 1] int32 boundaries: every query row is in one of N sequences, some of which have no keys.
        pairs: of a query and a key that it attends to, which is the work.
        schedules: of attention's calls, by head dimension, dtype and implementation; all layers use the same.
    """

    source: int
    rows: Tensor
    cu_q: Tensor
    cu_k: Tensor
    pairs: int
    schedules: dict[tuple, AttentionSchedule] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device | str) -> Exchange:
        moved = {name: getattr(self, name).to(device) for name in ("rows", "cu_q", "cu_k")}
        return replace(self, **moved, schedules={})


@dataclass(frozen=True)
class Plan:
    """How one packed batch is spread over the ranks that share it.

    Rank p = r · ulysses + u is Ulysses rank u of ring rank r. A piece is a run of tokens of one document.

    Args:
        cu_seqlens: [N + 1] boundaries of the documents.
        ulysses: ranks that exchange heads.
        ring: ranks that exchange keys and values.
        heads: of each Ulysses rank.
        head_dim: D.
        scheme: how tokens were assigned to ring ranks.
        owner, document, start, end: [pieces] ring rank, document, first token and end in the batch; by ring rank,
            then by token.
    """

    cu_seqlens: np.ndarray
    ulysses: int
    ring: int
    heads: tuple[Heads, ...]
    head_dim: int
    scheme: str
    owner: np.ndarray
    document: np.ndarray
    start: np.ndarray
    end: np.ndarray
    _exchanges: dict[tuple[int, int, str], Exchange | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ranks(self) -> int:
        """P, the number of ranks that share the batch."""
        return self.ulysses * self.ring

    @property
    def total(self) -> int:
        """Tokens of the batch."""
        return int(self.cu_seqlens[-1])

    @cached_property
    def pieces(self) -> np.ndarray:
        """[ring + 1] index of each ring rank's first piece."""
        return np.searchsorted(self.owner, np.arange(self.ring + 1))

    @cached_property
    def rows(self) -> np.ndarray:
        """[ring] tokens of each ring rank."""
        return np.bincount(self.owner, weights=self.end - self.start, minlength=self.ring).astype(np.int64)

    def part(self, rank: int) -> tuple[int, int]:
        """First and end of the rows of its ring rank's shard that a rank computes with."""
        r, u = divmod(rank, self.ulysses)
        rows = int(self.rows[r])
        return rows * u // self.ulysses, rows * (u + 1) // self.ulysses

    def part_rows(self, rank: int) -> int:
        """Number of tokens that a rank computes with."""
        first, end = self.part(rank)
        return end - first

    def shard(self, ring_rank: int) -> np.ndarray:
        """Tokens of the batch in a ring rank's shard, ascending."""
        here = slice(self.pieces[ring_rank], self.pieces[ring_rank + 1])
        return ranges(self.start[here], self.end[here])

    def tokens(self, rank: int) -> Tensor:
        """Tokens of the batch that a rank computes with, int64, ascending."""
        first, end = self.part(rank)
        return torch.from_numpy(self.shard(rank // self.ulysses)[first:end])

    def rank_of_token(self) -> np.ndarray:
        """[total] int64, the rank that computes with each token; the inverse of ``tokens``."""
        found = np.empty(self.total, np.int64)
        for r in range(self.ring):
            ranks = np.arange(r * self.ulysses, (r + 1) * self.ulysses)
            found[self.shard(r)] = np.repeat(ranks, [self.part_rows(rank) for rank in ranks.tolist()])
        return found

    def exchange(self, ring_rank: int, source: int, device: torch.device | str = "cpu") -> Exchange | None:
        """What a ring rank's queries attend to in a source rank's shard; None if nothing. Cached by device.

        Args:
            ring_rank: with the queries.
            source: ring rank with the keys, which may be the same.
            device: of the tensors.
        """
        key = (ring_rank, source, str(device))
        if key not in self._exchanges:
            if str(device) == "cpu":
                with torch.inference_mode(False):  # a later step of the same plan may be trained
                    found = self._own(ring_rank) if ring_rank == source else self._other(ring_rank, source)
            else:
                found = self.exchange(ring_rank, source)
                found = found and made_alone(partial(found.to, device), torch.device(device))
            self._exchanges[key] = found
        return self._exchanges[key]

    def keep(self, ring_rank: int, source: int, found: Exchange) -> None:
        """Has ``exchange`` return ``found`` on its device, which was copied there with other tensors of the batch."""
        self._exchanges[ring_rank, source, str(found.rows.device)] = replace(found, schedules={})

    def _local(self, ring_rank: int) -> tuple[np.ndarray, ...]:
        """Document, first token and end of each piece of a ring rank, and the first row of each in its shard."""
        here = slice(self.pieces[ring_rank], self.pieces[ring_rank + 1])
        start, end = self.start[here], self.end[here]
        return self.document[here], start, end, np.concatenate(([0], np.cumsum(end - start)))[:-1]

    def _own(self, ring_rank: int) -> Exchange | None:
        document, start, end, _ = self._local(ring_rank)
        if not len(document):
            return None
        lengths = np.bincount(np.unique(document, return_inverse=True)[1], weights=end - start)
        cu = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
        pairs = int((lengths * (lengths + 1) / 2).sum())
        return Exchange(ring_rank, torch.arange(int(cu[-1]), device="cpu"), cu, cu, pairs)

    def _other(self, ring_rank: int, source: int) -> Exchange | None:
        documents, starts, ends, rows = self._local(ring_rank)
        k_documents, k_starts, k_ends, k_rows = self._local(source)
        # Pairs of a query piece and an earlier key piece of the same document: every query attends to every key.
        q, k = pairs_of(documents, k_documents)
        seen = k_ends[k] <= starts[q]
        q, k = q[seen], k[seen]
        if not len(q):
            return None
        # All query pieces of a document that have keys here have the same keys, and they are consecutive rows.
        keys = np.bincount(q, weights=k_ends[k] - k_starts[k], minlength=len(documents)).astype(np.int64)
        first = np.unique(documents[keys > 0], return_index=True)[1]
        where = np.flatnonzero(keys > 0)
        q0 = rows[where[first]]
        last = np.concatenate((first[1:], [len(where)])) - 1
        q1 = rows[where[last]] + ends[where[last]] - starts[where[last]]
        nk = keys[where[first]]
        if (keys[where[last]] != nk).any():
            raise ValueError(f"pieces of a document on ring rank {ring_rank} see different keys of rank {source}")
        of_document = np.unique(k)
        bounds_q = np.stack((q0, q1), 1).reshape(-1)
        lengths_k = np.stack((np.zeros_like(nk), nk), 1).reshape(-1)
        cu_q = np.concatenate(([0], bounds_q, [self.rows[ring_rank]]))
        cu_k = np.concatenate(([0], np.cumsum(lengths_k), [nk.sum()]))
        return Exchange(
            source,
            torch.from_numpy(ranges(k_rows[of_document], (k_rows + k_ends - k_starts)[of_document])),
            torch.from_numpy(cu_q.astype(np.int32)),
            torch.from_numpy(cu_k.astype(np.int32)),
            int(((q1 - q0) * nk).sum()),
        )

    @cached_property
    def work(self) -> np.ndarray:
        """[ranks] query-key pairs that each rank computes, over its query heads."""
        pairs = self._pairs()
        heads = np.array([len(part.q) for part in self.heads])
        return (pairs[:, None] * heads).reshape(-1)

    def _pairs(self) -> np.ndarray:
        """[ring] query-key pairs of each ring rank: the query at position p of its document has p + 1 keys."""
        first = self.start - self.cu_seqlens[self.document]
        last = self.end - self.cu_seqlens[self.document]
        pairs = (last * (last + 1) - first * (first + 1)) / 2
        return np.bincount(self.owner, weights=pairs, minlength=self.ring)

    def imbalance(self) -> tuple[float, float]:
        """Largest ÷ mean over the ranks, of work and of tokens; 1 is perfect balance."""
        tokens = np.array([end - first for first, end in map(self.part, range(self.ranks))])
        return float(self.work.max() / max(self.work.mean(), 1)), float(tokens.max() / max(tokens.mean(), 1))

    def digest(self) -> str:
        """SHA-256 of everything that ranks must agree on."""
        parts = (self.cu_seqlens, self.owner, self.document, self.start, self.end)
        text = f"{self.ulysses} {self.ring} {self.heads} {self.head_dim} {self.scheme} "
        return hashlib.sha256(text.encode() + b"".join(np.asarray(x, np.int64).tobytes() for x in parts)).hexdigest()

    def __str__(self) -> str:
        work, tokens = self.imbalance()
        cut = int((np.unique(self.document, return_counts=True)[1] > 1).sum())
        lines = [
            f"{self.total:,} tokens in {len(self.cu_seqlens) - 1} documents over {self.ranks} ranks: "
            f"ulysses {self.ulysses} x ring {self.ring}, {self.scheme}, {cut} documents cut",
            f"heads {', '.join(f'{len(h.q)}:{len(h.kv)}' for h in self.heads)}; "
            f"largest ÷ mean: work {work:.3f}, tokens {tokens:.3f}",
        ]
        for r in range(self.ring):
            steps = [(s, self.exchange(r, s)) for s in range(self.ring)]
            seen = ", ".join(f"{len(x.rows):,} keys of {s}" for s, x in steps if x is not None and s != r)
            lines.append(f"ring rank {r}: {self.rows[r]:,} tokens; {seen or 'no keys of others'}")
        return "\n".join(lines)


def make_plan(
    cu_seqlens: Sequence[int] | Tensor,
    *,
    ulysses: int = 1,
    ring: int = 1,
    heads: int = 28,
    kv_heads: int = 4,
    head_dim: int = 128,
    scheme: str = "balanced",
) -> Plan:
    """Plans how a packed batch is spread over ulysses · ring ranks; the same inputs give the same plan on every rank.

    Args:
        cu_seqlens: [N + 1] boundaries of the documents, starting at 0; documents may be empty.
        ulysses: ranks that exchange heads.
        ring: ranks that exchange keys and values.
        heads, kv_heads, head_dim: of the attention.
        scheme: how tokens are assigned to ring ranks. A zigzag cut is into 2 · ring pieces, of which ring rank i gets
            the i-th and the i-th from the end. "balanced": zigzag cuts of the longest documents, as few as make work
            and tokens even, the other documents whole; "documents": a zigzag cut of every document; "zigzag": one of
            the whole batch; "contiguous": ring rank i gets the i-th of ring parts of the batch.

    Returns:
        The plan.

    Raises:
        ValueError: boundaries that fall, an unknown scheme, heads that cannot be split.
    """
    cu = np.asarray(cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else cu_seqlens, np.int64)
    if cu.ndim != 1 or not len(cu) or cu[0] != 0 or (np.diff(cu) < 0).any():
        raise ValueError(f"boundaries {cu[:8].tolist()} … do not rise from 0")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} is none of {', '.join(SCHEMES)}")
    if ring < 1:
        raise ValueError(f"ring {ring}")
    parts = split_heads(heads, kv_heads, ulysses)
    owner, start, end = _assign(cu, ring, scheme)
    keep = end > start
    owner, start, end = owner[keep], start[keep], end[keep]
    order = np.lexsort((start, owner))
    owner, start, end = owner[order], start[order], end[order]
    document = np.searchsorted(cu, start, side="right") - 1
    return Plan(cu, ulysses, ring, parts, head_dim, scheme, owner, document, start, end)


def _assign(cu: np.ndarray, ring: int, scheme: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ring rank, first token and end of every piece, unsorted; pieces may be empty."""
    if ring == 1:
        return np.zeros(len(cu) - 1, np.int64), cu[:-1], cu[1:]
    if scheme in ("contiguous", "zigzag"):
        parts = ring if scheme == "contiguous" else 2 * ring
        edges = np.union1d(cu, cu[-1] * np.arange(parts + 1) // parts)
        part = np.searchsorted(cu[-1] * np.arange(1, parts + 1) // parts, edges[:-1], side="right")
        return np.minimum(part, 2 * ring - 1 - part) if scheme == "zigzag" else part, edges[:-1], edges[1:]
    if scheme == "documents":
        return _zigzag(cu[:-1], cu[1:], ring)
    return _balance(cu, ring)


def _zigzag(start: np.ndarray, end: np.ndarray, ring: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts every document into 2 · ring pieces; ring rank i gets the i-th and the i-th from the end."""
    parts = 2 * ring
    # Pieces with a token more than others are at other places in each document, so that no rank collects them.
    shift = np.arange(len(start))[:, None] * SHIFT % parts
    edges = start[:, None] + ((end - start)[:, None] * np.arange(parts + 1) + shift) // parts
    edges[:, 0], edges[:, -1] = start, end
    part = np.arange(parts)
    owner = np.broadcast_to(np.minimum(part, parts - 1 - part), (len(start), parts))
    return owner.reshape(-1), edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)


def _balance(cu: np.ndarray, ring: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zigzag cuts of the longest documents: more and more of them, until whole documents balance the rest."""
    lengths = np.diff(cu)
    order = np.argsort(-lengths, kind="stable")
    tokens, pairs = lengths[order] / max(cu[-1], 1), lengths[order].astype(float) ** 2
    pairs /= max(pairs.sum(), 1)
    # A document that exceeds a rank's mean load by itself must be cut.
    cut = int(((tokens > 1 / ring) | (pairs > 1 / ring)).sum())
    while True:
        owner, load = _longest_first(tokens[cut:], pairs[cut:], ring)
        shared = tokens[:cut].sum() / ring, pairs[:cut].sum() / ring
        worst = max(max(load[0]) + shared[0], max(load[1]) + shared[1]) * ring
        if worst <= EVEN or cut >= len(lengths):
            break
        cut = max(cut + 1, cut * 5 // 4)
    whole = order[cut:]
    a = _zigzag(cu[:-1][order[:cut]], cu[1:][order[:cut]], ring)
    b = (np.asarray(owner, np.int64), cu[:-1][whole], cu[1:][whole])
    owner, starts, ends = (np.concatenate(pair) for pair in zip(a, b, strict=True))
    return owner, starts, ends


def _longest_first(tokens: np.ndarray, pairs: np.ndarray, ring: int) -> tuple[list[int], tuple[list, list]]:
    """Assigns whole documents, longest first, to the least loaded rank; returns owners, and each rank's load."""
    heap, owner = [(0.0, rank) for rank in range(ring)], []
    load = [0.0] * ring, [0.0] * ring
    for token, pair in zip(tokens.tolist(), pairs.tolist(), strict=True):
        _, rank = heap[0]
        owner.append(rank)
        load[0][rank] += token
        load[1][rank] += pair
        heapq.heapreplace(heap, (max(load[0][rank], load[1][rank]), rank))
    return owner, load


def ranges(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Concatenates start[0] .. end[0] − 1, start[1] .. end[1] − 1, …; int64."""
    lengths = end - start
    shift = np.concatenate(([0], np.cumsum(lengths)))[:-1]
    return np.repeat(start - shift, lengths) + np.arange(int(lengths.sum()))


def pairs_of(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices i, j of all pairs with a[i] = b[j], for ascending a and b."""
    first, end = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
    return np.repeat(np.arange(len(a)), end - first), ranges(first, end)
