"""Prompts computed once, then one token per sequence and step: what greedy decoding and sampling share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.network.kv_cache import KVCache

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch


def prompt_lengths(model: Network, batch: Batch) -> list[int]:
    """Tokens of each prompt.

    Raises:
        ValueError: an empty prompt, or a prompt that leaves no room in the context.
    """
    lengths = batch.cu_seqlens.diff().tolist()
    context = model.config.text.max_positions
    for index, length in enumerate(lengths):
        if not 0 < length < context:
            raise ValueError(f"conversation {index} has {length} tokens; 1 to {context - 1} leave room for an answer")
    return lengths


class Decoder:
    """Sequences that grow by one token at a time; each prompt starts ``samples`` of them, one after another.

    Args:
        model: the model.
        batch: packed prompts, each ending where the answer begins.
        room: tokens that may be fed to each sequence.
        samples: sequences per prompt; the prompt's keys and values are computed once and copied.
        encoded: what ``model.encode_batch`` returned for this batch, when it is known already.
    """

    def __init__(
        self,
        model: Network,
        batch: Batch,
        room: int,
        *,
        samples: int = 1,
        encoded: tuple[Tensor, list[int]] | None = None,
    ):
        self.model = model
        lengths = batch.cu_seqlens.diff()
        capacity = int(lengths.max()) + (room if samples == 1 else 0)
        self.cache = KVCache(model.config.text, len(lengths), capacity, model.dtype, model.device)
        hidden, positions = model.hidden(batch, encoded=encoded, cache=self.cache)
        last = torch.repeat_interleave(batch.cu_seqlens[1:].long().to(model.device) - 1, samples)
        if samples > 1:
            self.cache = self.cache.repeat(samples, room)
        self.hidden, self.positions = hidden[last], positions[last]

    def scores(self) -> Tensor:
        """Float32 scores of the next token of each sequence, [sequences, vocabulary]."""
        return self.model.lm_head(self.hidden).float()

    def feed(self, token_B: Tensor) -> None:
        """Takes the next token of each sequence, [sequences] int64."""
        language_model = self.model.language_model
        self.positions = self.positions + self.model.text_advance
        self.hidden = language_model(language_model.embed_tokens(token_B), self.positions, cache=self.cache)

    def keep(self, sequences: Tensor) -> None:
        """Goes on with some sequences only, given by their numbers."""
        self.cache.keep(sequences)
        self.hidden, self.positions = self.hidden[sequences], self.positions[sequences]
