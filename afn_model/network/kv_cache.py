"""Keys and values of sequences that grow."""

from __future__ import annotations

import torch
from torch import Tensor

from afn_model.config import TextConfig


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

    def repeat(self, samples: int, max_new_tokens: int) -> KVCache:
        """``samples`` copies of every sequence, one after another, each with room to grow; nothing is recomputed."""
        held = self.kv.shape[3]
        repeated = KVCache.__new__(KVCache)
        shape = (*self.kv.shape[:2], samples * self.kv.shape[2], held + max_new_tokens, *self.kv.shape[4:])
        repeated.kv = self.kv.new_empty(shape)
        repeated.kv.unflatten(2, (-1, samples))[:, :, :, :, :held] = self.kv[:, :, :, None]
        repeated.lengths = self.lengths.repeat_interleave(samples)
        repeated.slots, repeated.kept = self.slots.new_empty(0), 0
        return repeated

    def select(self, sequences: list[int]) -> None:
        """Drops all but some sequences, given in ascending order; theirs move up in place, without a second cache."""
        for slot, sequence in enumerate(sequences):
            if slot != sequence:
                self.kv[:, :, slot] = self.kv[:, :, sequence]
        self.kv, self.lengths = self.kv[:, :, : len(sequences)], self.lengths[sequences]
