"""Which block of which sequence every program of the attention kernels takes, longest first: made once per batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from afn_kernels.attention.config import choose


@dataclass(frozen=True, eq=False)
class AttentionSchedule:
    """Boundaries of a packed batch and the kernels' tables for them; ``attention_schedule`` makes it.

    ``tables`` is by tile: its size in rows, and whether the rows are keys. It is never added to: a table that a call
    needs and that is missing is made for that call, so that calls have no side effects for torch.compile to follow.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    causal: bool
    tables: dict[tuple[int, bool], torch.Tensor] = field(default_factory=dict)

    def boundaries(
        self, cu_seqlens_q: torch.Tensor | None, cu_seqlens_k: torch.Tensor | None, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The schedule's boundaries, which are the call's own where it gives any."""
        given = (cu_seqlens_q, self.cu_seqlens_q), (cu_seqlens_k, self.cu_seqlens_k)
        if any(mine is not None and mine is not other for mine, other in given):
            raise ValueError("attention: the schedule was made from other boundaries than the call's cu_seqlens")
        if causal != self.causal:
            raise ValueError(f"attention: causal={causal}, the schedule was made for causal={self.causal}")
        return self.cu_seqlens_q, self.cu_seqlens_k

    def of(
        self, kernels: Sequence[str], total_q: int, total_k: int, head_dim: int, dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The table of each kernel ("forward", "carry", "dq", "dkv")."""
        made, tiles = dict(self.tables), [tile_of(kernel, head_dim, dtype) for kernel in kernels]
        for block, keys in tiles:
            if (block, keys) not in made:
                table = tile_table(self.cu_seqlens_q, self.cu_seqlens_k, total_q, total_k, block, self.causal, keys)
                made[block, keys] = table
            elif len(made[block, keys]) != most_tiles(total_k if keys else total_q, len(self.cu_seqlens_q) - 1, block):
                raise ValueError(f"attention: the schedule was not made for {total_q} queries and {total_k} keys")
        return [made[tile] for tile in tiles]


def tile_of(kernel: str, head_dim: int, dtype: torch.dtype) -> tuple[int, bool]:
    """Rows of a kernel's tile, and whether they are keys."""
    config = choose(kernel, head_dim, dtype == torch.float32)
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
