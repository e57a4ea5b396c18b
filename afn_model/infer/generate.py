"""Autoregressive generation for a batch of conversations of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.infer.decoder import Decoder, prompt_lengths

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    Args:
        repetition_penalty: positive scores of tokens seen before (prompt included) are divided by it, negative
            ones multiplied; 1 turns it off.
        temperature: 0 is greedy; otherwise scores are divided by it before sampling.
        top_p: sample from the smallest set of tokens whose probability reaches this.
        seed: of the sampling; None draws from torch's global generator.
    """

    repetition_penalty: float = 1.2
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        if self.repetition_penalty <= 0 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"out of range: {self}; penalty > 0, temperature >= 0 and 0 < top_p <= 1 are expected")


@torch.inference_mode()
def generate(
    model: Network,
    batch: Batch,
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stop_token_ids: tuple[int, ...] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """New tokens for each conversation: one packed prefill, then one token per sequence and step.

    Args:
        model: the model.
        batch: packed prompts, each ending where the answer begins.
        max_new_tokens: at most this many tokens per conversation.
        sampling: how tokens are picked.
        stop_token_ids: tokens that end an answer (not returned); default ``model.config.stop_token_ids``.
        on_token: called with (conversation, token) as soon as each token is known.

    Returns:
        A list of token ids per conversation, without the stop token.

    Raises:
        ValueError: an empty prompt, or a prompt that leaves no room in the context.
    """
    stop = set(model.config.stop_token_ids if stop_token_ids is None else stop_token_ids)
    lengths = prompt_lengths(model, batch)
    new_tokens = min(max_new_tokens, model.config.text.max_positions - max(lengths, default=0))
    answers: list[list[int]] = [[] for _ in lengths]
    if not answers or new_tokens < 1:
        return answers

    decoder = Decoder(model, batch, new_tokens)
    seen = seen_tokens(batch, model.config.text.vocab_size, model.device)
    generator = None if sampling.seed is None else torch.Generator(model.device).manual_seed(sampling.seed)

    running = [True] * len(lengths)
    for step in range(new_tokens):
        token_B = pick(decoder.scores(), seen, sampling, generator)
        for index, token in enumerate(token_B.tolist()):
            if running[index] and token in stop:
                running[index] = False
            elif running[index]:
                answers[index].append(token)
                if on_token is not None:
                    on_token(index, token)
        if not any(running) or step + 1 == new_tokens:
            break
        seen.scatter_(1, token_B[:, None], True)
        decoder.feed(token_B)
    return answers


def seen_tokens(batch: Batch, vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens each prompt holds, [B, vocabulary] bool."""
    lengths = batch.cu_seqlens.diff().long()
    seen = torch.zeros(len(lengths), vocab_size, dtype=torch.bool)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths.cpu())
    seen[sequence, batch.input_ids.cpu()] = True
    return seen.to(device)


def pick(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """The next token of each sequence, [B] int64, from float32 logits [B, vocabulary]."""
    penalty = sampling.repetition_penalty
    if penalty != 1.0:
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(probabilities(logits, sampling.temperature, sampling.top_p), 1, generator=generator)[:, 0]


def probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """softmax(logits / temperature), [B, vocabulary], zero outside the smallest set that reaches ``top_p``."""
    probability = (logits / temperature).softmax(-1)
    if top_p == 1:
        return probability
    ranked, token = probability.sort(dim=-1, descending=True, stable=True)
    # A token stays while the probability before it is below top_p, so the first always does.
    ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)
    return torch.empty_like(probability).scatter_(1, token, ranked)
