"""Keys and values in pages: where one forward pass writes those of its tokens, and what the tokens attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import afn_kernels as ak

if TYPE_CHECKING:
    from afn_kernels.attention.schedule import AttentionSchedule


@dataclass(frozen=True)
class PagedChunks:
    """Sequences of which a forward pass computes several tokens each, one after another.

    Args:
        cu_seqlens: [N + 1] int32 boundaries of the new tokens.
        table: [N, pages] int32, the pages of each sequence in order.
        lengths: [N] int32 tokens of each sequence, the new ones included.
        schedule: where none of them has tokens that were computed before: of attention among the new ones alone.
    """

    cu_seqlens: Tensor
    table: Tensor
    lengths: Tensor
    schedule: AttentionSchedule | None = None


@dataclass(frozen=True)
class PagedRows:
    """Sequences of which a forward pass computes one token each.

    Args:
        table: [R, pages] int32, the pages of each sequence in order.
        lengths: [R] int32 tokens of each sequence, the new one included.
        prefix_lengths: [groups] int32, where R / groups neighbours each have the same first tokens in the same pages,
            which are then read once for all of them.
        places: [rows] int64, where each row stands among the R, which have others in between; None where they are all.
    """

    table: Tensor
    lengths: Tensor
    prefix_lengths: Tensor | None = None
    places: Tensor | None = None


@dataclass(frozen=True)
class PagedKV:
    """What one forward pass reads and writes of the paged keys and values: its tokens are chunks, then rows.

    Args:
        kv: [layers, 2, pages, page, KV heads, head_dim].
        slots: [T] int64, the place of each token in the pages taken as one run; nothing is written for negative ones.
        chunk_tokens, row_tokens: how many tokens of T there are of each; those behind them attend to nothing.
        split: keys that a row's attention reads together; None leaves it to the kernel.

    Source: Kwon et al., 2023, arXiv:2309.06180.
    """

    kv: Tensor
    slots: Tensor
    chunk_tokens: int = 0
    row_tokens: int = 0
    chunks: PagedChunks | None = None
    rows: PagedRows | None = None
    split: int | None = None

    def slot_mapping(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where new keys and values are written: both caches [pages, page, KV heads, head_dim], and the slots."""
        return self.kv[layer, 0], self.kv[layer, 1], self.slots

    @property
    def fresh(self) -> bool:
        """Whether chunks attend to the new keys and values themselves rather than to the pages."""
        return self.chunks is not None and self.chunks.schedule is not None

    def attention(self, q: Tensor, k: Tensor | None, v: Tensor | None, layer: int) -> Tensor:
        """Causal attention of the new tokens, whose keys and values are in the pages already.

        Args:
            q: [T, heads, head_dim].
            k, v: [T, KV heads, head_dim], the new ones; needed where they are ``fresh``.
            layer: number of the layer.
        """
        k_cache, v_cache = self.kv[layer, 0], self.kv[layer, 1]
        found, at = [], self.chunk_tokens
        if self.chunks is not None:
            new, chunks = q[:at], self.chunks
            if chunks.schedule is not None:
                assert k is not None and v is not None, "chunks attend to them"  # noqa: PT018
                out = ak.attention(new, k[:at], v[:at], causal=True, schedule=chunks.schedule)
                assert isinstance(out, Tensor)
            else:
                out = ak.paged_attention(new, k_cache, v_cache, chunks.table, chunks.cu_seqlens, chunks.lengths)
            found.append(out)
        if self.rows is not None:
            rows, new = self.rows, q[at : at + self.row_tokens, None]
            if rows.places is not None:
                new = new.new_zeros(len(rows.table), *new.shape[1:]).index_copy_(0, rows.places, new)
            options = {"block_table": rows.table, "split": self.split, "prefix_lengths": rows.prefix_lengths}
            out = ak.decode_attention(new, k_cache, v_cache, rows.lengths, **options)[:, 0]
            found.append(out if rows.places is None else out[rows.places])
        padding = len(q) - at - self.row_tokens
        if padding:
            found.append(q.new_zeros(padding, *q.shape[1:]))
        return found[0] if len(found) == 1 else torch.cat(found)
