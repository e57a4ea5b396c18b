"""Keys and values of sequences that grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from afn_model.config import TextConfig

PAGE = 64  # tokens; each answer wastes less than one page


class KVCache:
    """Keys and values of B sequences, [B, capacity, KV heads, head_dim] per layer, and how many are valid.

    ``kept`` is above 0 where the only sequence goes on from tokens that it holds (``resume``).
    """

    def __init__(self, config: TextConfig, sequences: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.layers, 2, sequences, capacity, config.kv_heads, config.head_dim)
        self.kv = torch.empty(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(sequences, dtype=torch.int64, device=device)
        self.slots = torch.empty(0, dtype=torch.int64, device=device)
        self.kept = 0

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.kv[index, 0], self.kv[index, 1]

    def advance(self, cu_seqlens: Tensor | None) -> None:
        """Makes room for the coming tokens: a packed prefill behind what is there, or one token per sequence."""
        capacity = self.kv.shape[3]
        sequence = torch.arange(len(self.lengths), device=self.lengths.device)
        if cu_seqlens is None:
            self.slots = sequence * capacity + self.lengths
            self.lengths = self.lengths + 1
        else:
            coming = cu_seqlens.diff().long()
            sequence = torch.repeat_interleave(sequence, coming)
            self.slots = sequence * capacity + torch.arange(len(sequence), device=sequence.device)
            self.slots += (self.lengths - cu_seqlens[:-1])[sequence]
            self.lengths = self.lengths + coming

    def slot_mapping(self, index: int) -> dict[str, Tensor]:
        """Where ``ak.rotary`` writes the coming tokens' keys and values."""
        k_cache, v_cache = self.layer(index)
        return {"k_cache": k_cache, "v_cache": v_cache, "slots": self.slots}

    def resume(self, kept: int, capacity: int) -> None:
        """Keeps the first ``kept`` tokens of the only sequence, with room for ``capacity`` in all."""
        assert len(self.lengths) == 1, "one sequence goes on"
        if capacity > self.kv.shape[3]:
            grown = self.kv.new_empty((*self.kv.shape[:3], capacity, *self.kv.shape[4:]))
            grown[:, :, :, :kept] = self.kv[:, :, :, :kept]
            self.kv = grown
        self.lengths, self.kept = torch.full_like(self.lengths, kept), kept

    def pages(self) -> dict[str, Any]:
        """What ``ak.decode_attention`` needs besides the layer and the lengths."""
        return {}

    def select(self, sequences: list[int]) -> None:
        """Drops all but some sequences, given in ascending order; theirs move up in place, without a second cache."""
        for slot, sequence in enumerate(sequences):
            if slot != sequence:
                self.kv[:, :, slot] = self.kv[:, :, sequence]
        self.kv, self.lengths = self.kv[:, :, : len(sequences)], self.lengths[sequences]


class SharedKVCache(KVCache):
    """Keys and values of prompts, each with several answers, in pages [pages, PAGE, KV heads, head_dim] per layer.

    The full pages of a prompt stand in the table of each of its answers, so that a prompt is held once, however many
    answers it has. Only the page that an answer goes on in is its own, with a copy of the prompt's last tokens in it.
    ``lengths`` and the table have a row for each prompt before ``branch``, and for each answer afterwards.

    Args:
        config: of the language model.
        prompts: tokens of each prompt, which a prefill will write.
        samples: answers to each prompt.
        max_new_tokens: tokens that an answer may grow by.
        dtype, device: of keys and values.

    Source: Kwon et al., 2023, arXiv:2309.06180, section 4.4, parallel sampling.
    """

    def __init__(
        self,
        config: TextConfig,
        prompts: list[int],
        samples: int,
        max_new_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.samples = samples
        # The first answer goes on in the prompt's last page; the others need a page in its place.
        own = [_pages(length % PAGE + max_new_tokens) for length in prompts]
        first = [_pages(length + max_new_tokens) for length in prompts]
        bounds = [0]
        for one, other in zip(first, own, strict=True):
            bounds.append(bounds[-1] + one + (samples - 1) * other)
        table = torch.zeros(len(prompts), samples, max(first, default=0), dtype=torch.int32)
        for rows, begin, length, one, other in zip(table, bounds, prompts, first, own, strict=False):
            full = length // PAGE
            rows[:, :one] = begin + torch.arange(one, dtype=torch.int32)
            for number, row in enumerate(rows[1:]):
                row[full : full + other] = begin + one + number * other + torch.arange(other, dtype=torch.int32)
        shape = (config.layers, 2, bounds[-1], PAGE, config.kv_heads, config.head_dim)
        self.kv = torch.empty(shape, dtype=dtype, device=device)
        self.table = table.flatten(0, 1).to(device)
        self.prefix = torch.tensor(prompts, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(len(prompts), dtype=torch.int64, device=device)
        self.slots = torch.empty(0, dtype=torch.int64, device=device)
        self.kept = 0

    def advance(self, cu_seqlens: Tensor | None) -> None:
        """Makes room for the coming tokens: the packed prompts, or one token per answer."""
        if cu_seqlens is None:
            self.slots = self.slot(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)
            self.lengths = self.lengths + 1
            return
        coming = cu_seqlens.diff().long()
        prompt = torch.repeat_interleave(torch.arange(len(coming), device=coming.device), coming)
        place = torch.arange(len(prompt), device=prompt.device) - cu_seqlens[:-1].long()[prompt]
        self.slots = self.slot(prompt * self.samples, place)
        self.lengths = coming

    def slot(self, row: Tensor, place: Tensor) -> Tensor:
        """Rows of the pages, taken as one run of tokens, of places in sequences."""
        return self.table[row, place // PAGE].long() * PAGE + place % PAGE

    def branch(self) -> None:
        """Goes on with an answer per row of the table."""
        rows = self.table.unflatten(0, (-1, self.samples))
        tail = rows.gather(2, (self.prefix // PAGE)[:, None, None].expand(-1, self.samples, 1))[..., 0].long()
        # A prompt that ends with its last page leaves nothing to copy; what is copied then is never read.
        self.kv[:, :, tail[:, 1:].flatten()] = self.kv[:, :, tail[:, :1].expand(-1, self.samples - 1).flatten()]
        self.lengths = self.lengths.repeat_interleave(self.samples)

    def pages(self) -> dict[str, Any]:
        return {"block_table": self.table, "prefix_lengths": self.prefix}

    def select(self, sequences: list[int]) -> None:
        """Drops all but some answers, given in ascending order, equally many of each prompt that has any left.

        Nothing is moved. Pages of what is dropped stay where they are.
        """
        size = len(self.lengths) // max(len(self.prefix), 1)
        prompts = sorted({row // size for row in sequences})
        counts = {sum(row // size == prompt for row in sequences) for prompt in prompts}
        assert len(counts) == 1, f"answers of each prompt that go on: {sorted(counts)}"
        self.table, self.lengths, self.prefix = self.table[sequences], self.lengths[sequences], self.prefix[prompts]


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)
