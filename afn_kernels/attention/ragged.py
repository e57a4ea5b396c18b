"""Packed [T, ...] to padded [N, S, ...] and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Ragged:
    """How sequences are packed: their lengths, the longest one, and where each row stands in the padded batch."""

    lengths: torch.Tensor
    longest: int
    rows: torch.Tensor | None

    @staticmethod
    def of(x: torch.Tensor, cu_seqlens: torch.Tensor | None) -> Ragged:
        """The packing of x [T, ...] cut at ``cu_seqlens``; None means one sequence."""
        if cu_seqlens is None:
            return Ragged(torch.tensor([len(x)], device=x.device), len(x), None)
        lengths = cu_seqlens.diff().long()
        longest = int(lengths.max()) if len(lengths) else 0
        if longest * len(lengths) == len(x):
            return Ragged(lengths, longest, None)
        shift = torch.arange(len(lengths), device=x.device) * longest - cu_seqlens[:-1]
        rows = torch.repeat_interleave(shift, lengths) + torch.arange(len(x), device=x.device)
        return Ragged(lengths, longest, rows)

    @property
    def full(self) -> bool:
        """Whether every sequence has the same length, so that packed and padded are one memory."""
        return self.rows is None

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """[T, ...] → [N, S, ...], zeros where there is nothing."""
        if self.full:
            return x.reshape(len(self.lengths), self.longest, *x.shape[1:])
        padded = x.new_zeros(len(self.lengths) * self.longest, *x.shape[1:])
        return padded.index_copy(0, self.rows, x).unflatten(0, (len(self.lengths), self.longest))

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """[N, S, ...] → [T, ...]."""
        flat = x.reshape(-1, *x.shape[2:])
        return flat if self.full else flat.index_select(0, self.rows)
