"""Which pages the sequences of a step have, as the kernels read it, without going over every page at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.infer.pages import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence as Run

    from afn_model.infer.sequence import Sequence


class PageTables:
    """A row for each slot on the host, to which new pages of its sequence are added; 0 behind them.

    Args:
        slots: rows.
        pages: of a sequence, at most.
    """

    def __init__(self, slots: int, pages: int):
        self.rows = torch.zeros(slots, pages, dtype=torch.int32)
        self.written: list[tuple[list[int], int]] = [([], 0)] * slots  # the list of each row, and how much of it

    def of(self, sequences: Run[Sequence], lengths: Run[int]) -> Tensor:
        """[N, pages of the longest] int32, a copy.

        Args:
            sequences: each in a slot, or several times in one.
            lengths: tokens of each.
        """
        for sequence in sequences:
            known, count = self.written[sequence.slot]
            if known is not sequence.pages or count != len(known):
                self._write(sequence, count if known is sequence.pages else 0)
        slots = torch.tensor([sequence.slot for sequence in sequences])
        return self.rows[:, : -(-max(lengths) // PAGE)].index_select(0, slots)

    def _write(self, sequence: Sequence, first: int) -> None:
        """The pages of a sequence from one on; a sequence that begins anew has another list of them."""
        pages = sequence.pages
        row = self.rows[sequence.slot]
        row[first : len(pages)] = torch.tensor(pages[first:], dtype=torch.int32)
        if not first:
            row[len(pages) :] = 0
        self.written[sequence.slot] = pages, len(pages)
