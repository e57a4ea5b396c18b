"""Which block of which sequence every program of the attention kernels takes, longest first: made once per batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from afn_kernels import _check
from afn_kernels.attention.config import CUDA_KEYS, CUDA_QUERIES, choose

# Kernels with the tables of a backward: of dq, and of dk and dv.
TRITON_BACKWARD = ("dq", "dkv")
CUDA_BACKWARD = ("cuda_backward", "cuda_backward")


@dataclass(frozen=True, eq=False)
class MadeFrom:
    """The boundaries that a schedule was made from, how often each had been written to by then, and their values.

    A collective writes without counting; values are there on the CPU, where looking at them is free.
    """

    tensors: tuple[torch.Tensor, torch.Tensor]
    versions: tuple[int, int]
    values: tuple[list[int] | None, list[int] | None]

    @staticmethod
    def now(*tensors: torch.Tensor) -> MadeFrom:
        q, k = tensors
        return MadeFrom((q, k), (version(q), version(k)), (_values(q), _values(k)))

    def changed(self) -> bool:
        states = zip(self.tensors, self.versions, self.values, strict=True)
        return any(version(x) != then or (was is not None and _values(x) != was) for x, then, was in states)


def _values(x: torch.Tensor) -> list[int] | None:
    return x.tolist() if x.device.type == "cpu" and _check.readable(x) else None


def version(x: torch.Tensor) -> int:
    """How often a tensor was written to; a tensor of inference mode does not count."""
    return 0 if x.is_inference() else x._version


@dataclass(frozen=True, eq=False)
class AttentionSchedule:
    """Boundaries of a packed batch and the kernels' tables for them; ``attention_schedule`` makes it.

    ``tables`` is by tile: its size in rows, and whether the rows are keys. It is never added to: a table that a call
    needs and that is missing is made for that call, so that calls have no side effects for torch.compile to follow.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    causal: bool
    total_q: int
    total_k: int
    tables: dict[tuple[int, bool], torch.Tensor] = field(default_factory=dict)
    made_from: MadeFrom | None = None

    def boundaries(
        self,
        cu_seqlens_q: torch.Tensor | None,
        cu_seqlens_k: torch.Tensor | None,
        causal: bool,
        total_q: int,
        total_k: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The schedule's boundaries, which are the call's own where it gives any."""
        mine = (self.cu_seqlens_q, self.cu_seqlens_k)
        from_q, from_k = mine if self.made_from is None else self.made_from.tensors
        given = (cu_seqlens_q, mine[0], from_q), (cu_seqlens_k, mine[1], from_k)
        if any(x is not None and x is not own and x is not source for x, own, source in given):
            raise ValueError("attention: the schedule was made from other boundaries than the call's cu_seqlens")
        if causal != self.causal:
            raise ValueError(f"attention: causal={causal}, the schedule was made for causal={self.causal}")
        # A kernel follows its table wherever that points, and on a GPU nobody reads the boundaries first.
        if total_q != self.total_q or total_k != self.total_k:
            raise ValueError(f"attention: the schedule was not made for {total_q} queries and {total_k} keys")
        if not torch.compiler.is_compiling() and self.made_from is not None and self.made_from.changed():
            raise ValueError("attention: the cu_seqlens of the schedule were changed in place after it was made")
        return mine

    def of(self, kernels: Sequence[str], head_dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """The table of each kernel ("forward", "carry", "dq", "dkv"; "cuda", "cuda_backward")."""
        made, device = dict(self.tables), self.cu_seqlens_q.device
        tiles = [tile_of(kernel, head_dim, dtype, device) for kernel in kernels]
        for block, keys in tiles:
            if (block, keys) not in made:
                boundaries = self.cu_seqlens_q, self.cu_seqlens_k, self.total_q, self.total_k
                made[block, keys] = tile_table(*boundaries, block, self.causal, keys)
        return [made[tile] for tile in tiles]


@dataclass(frozen=True, eq=False)
class KeptTables:
    """The tables of two of our own boundaries by everything else they depend on, while neither is written to."""

    versions: tuple[int, int]
    by_call: dict[tuple, dict[tuple[int, bool], torch.Tensor]] = field(default_factory=dict)


_kept = WeakTensorKeyDictionary()  # by the queries' boundaries, then by the keys'
_own = WeakTensorKeyDictionary()


def declare(cu_seqlens: torch.Tensor) -> None:
    """Nobody but this library has these boundaries, and it writes to them by PyTorch's own operations alone."""
    _own[cu_seqlens] = True


def tables_of(
    kernels: Sequence[str],
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    causal: bool,
    total_q: int,
    total_k: int,
    head_dim: int,
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """The tables of a call without a schedule, made anew: a collective may have written to a caller's boundaries, which
    PyTorch does not count. Those of boundaries that this library has made (``declare``) are kept with them.
    """
    schedule = AttentionSchedule(cu_q, cu_k, causal, total_q, total_k)
    if not keeps(cu_q, cu_k):
        return schedule.of(kernels, head_dim, dtype)
    by_keys = _kept.get(cu_q)
    if by_keys is None:
        by_keys = _kept[cu_q] = WeakTensorKeyDictionary()
    versions, kept = (version(cu_q), version(cu_k)), by_keys.get(cu_k)
    if kept is None or kept.versions != versions:
        kept = by_keys[cu_k] = KeptTables(versions)
    # What one stream makes another one must not read before it is there.
    stream = torch.cuda.current_stream(cu_q.device).cuda_stream if cu_q.is_cuda else 0
    mine = kept.by_call.setdefault((causal, total_q, total_k, stream), {})
    with torch.inference_mode(False):  # a backward can save nothing that is made in inference mode
        found = replace(schedule, tables=mine).of(kernels, head_dim, dtype)
    if all(type(x) is torch.Tensor for x in found):
        mine.update(zip((tile_of(kernel, head_dim, dtype, cu_q.device) for kernel in kernels), found, strict=True))
    return found


def keeps(*boundaries: torch.Tensor) -> bool:
    """Whether tables may outlive a call: not in a graph, whose boundaries may be others at its next replay."""
    if torch.compiler.is_compiling() or any(type(x) is not torch.Tensor or x.is_inference() for x in boundaries):
        return False
    if not all(x in _own for x in boundaries):
        return False
    return not (boundaries[0].is_cuda and torch.cuda.is_current_stream_capturing())


def savable(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy that a backward can save where x is a tensor of inference mode. Call outside of that mode."""
    return x.clone() if x.is_inference() else x


def tile_of(kernel: str, head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[int, bool]:
    """Rows of a kernel's tile, and whether they are keys."""
    if kernel == "cuda":
        return CUDA_QUERIES[head_dim], False
    if kernel == "cuda_backward":
        return CUDA_KEYS, True
    config = choose(kernel, head_dim, dtype == torch.float32, device=device)
    return (config.keys, True) if kernel == "dkv" else (config.queries, False)


def most_tiles(total: int, sequences: int, block: int) -> int:
    """A bound on the tiles that needs no boundaries: a sequence without rows has no tile, and no tile is empty."""
    return min(total // block + sequences, total)


def tile_table(
    cu_q: torch.Tensor, cu_k: torch.Tensor, total_q: int, total_k: int, block: int, causal: bool, keys: bool
) -> torch.Tensor:
    """[tiles, 5] int32: first query, queries, first key, keys and block of every tile, those with most work first.

    Made on the device without waiting for it, so there are as many rows as there could be tiles: the last are zeros.

    Args:
        cu_q: [N + 1] boundaries of the queries.
        cu_k: [N + 1] boundaries of the keys.
        total_q: queries in all.
        total_k: keys in all.
        block: queries of a tile; keys, with ``keys``.
        causal: whether a tile's work depends on where it stands in its sequence.
        keys: tiles are blocks of keys, not of queries.
    """
    (q0, nq), (k0, nk) = _starts_and_lengths(cu_q, total_q), _starts_and_lengths(cu_k, total_k)
    blocks = ((nk if keys else nq) + block - 1) // block
    ends = blocks.cumsum(0)
    tile = torch.arange(most_tiles(total_k if keys else total_q, len(cu_q) - 1, block), device=cu_q.device)
    # Past the last block a search finds the column of zeros behind the last sequence.
    sequences = F.pad(torch.stack((q0, nq, k0, nk, ends - blocks)), (0, 1))
    q0, nq, k0, nk, first = sequences[:, torch.searchsorted(ends, tile, right=True)].unbind()
    index = (tile - first) * (nk if keys else nq).sign()
    if keys:
        work = torch.minimum(nq, nk - index * block) if causal else nq
    else:
        work = (nk - nq + torch.minimum((index + 1) * block, nq)).clamp(min=0) if causal else nk
    order = work.argsort(descending=True, stable=True)
    return torch.stack((q0, nq, k0, nk, index), 1)[order].int()


def _starts_and_lengths(cu: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept within the tensors whatever the boundaries say: nobody has read them on a GPU."""
    cu = cu.clamp(0, total)
    return cu[:-1], cu.diff().clamp(min=0)
