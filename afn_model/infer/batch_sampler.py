"""The next token of each sequence of a static batch, from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.hashing import MASK, key
from afn_model.infer.sampling_params import SamplingParams

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch

COLDEST = 1e-30  # a lower temperature is the same to float32 logits, but not a float32 whose inverse is finite


class BatchSampler:
    """Picks the next token of each sequence, greedily or at random.

    Random tokens of prompts with keys are a function of (seed, key, sample, step), whatever else is in the batch. Those
    of prompts without keys come from a torch generator, with which ``torch.multinomial`` would pick the same tokens.

    Args:
        model: the model.
        batch: the prompts.
        params: how tokens are picked; ``params.n`` sequences per prompt, one after another.
        keys: a whole number for each prompt, which needs ``params.seed``, or None.
    """

    def __init__(self, model: Network, batch: Batch, params: SamplingParams, keys: Sequence[int] | None):
        prompts, config = len(batch.cu_seqlens) - 1, model.config
        self.params, self.device, self.step = params, model.device, 0
        self.shape = (prompts * params.n, config.text.vocab_size)
        self.rows = list(range(self.shape[0]))
        self.penalty = config.repetition_penalty if params.repetition_penalty is None else params.repetition_penalty
        self.seen = None
        if self.penalty != 1:
            self.seen = seen_tokens(batch, config.text.vocab_size, model.device).repeat_interleave(params.n, 0)
        self.keys = self.generator = None
        if keys is not None and params.temperature > 0:
            assert params.seed is not None, "keys need a seed"
            self.keys = [key(params.seed, k, s) for k in keys for s in range(params.n)]
        elif params.seed is not None and params.temperature > 0:
            self.generator = torch.Generator(model.device).manual_seed(params.seed & MASK)

    def next(self, logits: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The next token of each sequence, its log-probability where prompts have keys, and whether it means anything.

        Args:
            logits: [sequences, vocabulary] float32.

        Returns:
            [sequences] int64, [sequences] float32 or None, and [sequences] bool: False where the largest score is NaN
            or infinite, and the token is any.
        """
        temperature, top_p, logprob = self.params.temperature, self.params.top_p, None
        if self.seen is not None:
            logits = penalise(logits, self.seen, self.penalty)
        # The largest score is NaN where any is.
        if temperature == 0:
            token = logits.argmax(-1)
            largest = logits.gather(1, token[:, None]).squeeze(1)
        elif self.keys is None:
            # Noise for finished sequences too, so that dropping them changes nothing for the others.
            noise = torch.empty(self.shape, device=self.device).exponential_(generator=self.generator)
            noise = noise if len(self.rows) == len(noise) else noise[self.rows]
            token, largest = race(logits, noise, temperature, top_p), logits.amax(-1)
        else:
            u = torch.tensor([key(self.keys[row], self.step) / 2**64 for row in self.rows], dtype=torch.float64)
            token, logprob = draw(logits, u.to(self.device), temperature, top_p)
            largest = logits.amax(-1)
        if self.seen is not None:
            self.seen.scatter_(1, token[:, None], True)
        self.step += 1
        return token, logprob, largest.isfinite()

    def select(self, sequences: list[int]) -> None:
        """Keeps only the given sequences."""
        self.rows = [self.rows[i] for i in sequences]
        if self.seen is not None:
            self.seen = self.seen[sequences]


def seen_tokens(batch: Batch, vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens each prompt holds, [B, vocabulary] bool."""
    lengths = batch.cu_seqlens.diff().long()
    seen = torch.zeros(len(lengths), vocab_size, dtype=torch.bool)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths.cpu())
    seen[sequence, batch.input_ids.cpu()] = True
    return seen.to(device)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, vocabulary] with those of tokens seen before divided by ``penalty``, or multiplied if negative."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature, [B, vocabulary], less the largest of a row first where that would be infinite."""
    temperature = max(temperature, COLDEST)
    largest = logits.amax(-1, keepdim=True)
    return (logits - torch.where((largest / temperature).isfinite(), 0.0, largest)) / temperature


def probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """softmax(logits / temperature), [B, vocabulary], zero outside the smallest set that reaches ``top_p``."""
    probability = scaled(logits, temperature).softmax(-1)
    if top_p == 1:
        return probability
    ranked, token = probability.sort(dim=-1, descending=True, stable=True)
    # A token stays while the probability before it is below top_p; the first does even if top_p is 0 in float32.
    cut = ranked.cumsum(-1) - ranked >= top_p
    cut[:, 0] = False
    ranked = ranked.masked_fill(cut, 0.0)
    return torch.empty_like(probability).scatter_(1, token, ranked)


def race(logits: Tensor, noise: Tensor, temperature: float, top_p: float) -> Tensor:
    """Exponential-race sampling, [B] int64: argmax(p / e), e ~ Exp(1), picks a token with probability p.

    Args:
        logits: [B, vocabulary] float32.
        noise: [B, vocabulary] float32 from Exp(1).
        temperature, top_p: as in ``SamplingParams``.
    """
    return (probabilities(logits, temperature, top_p) / noise).argmax(-1)


def draw(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """The first token whose cumulative probability exceeds u, and its log-probability before ``top_p`` cuts.

    Args:
        logits: [B, vocabulary] float32.
        u: [B] float64 in [0, 1).
        temperature, top_p: as in ``SamplingParams``.

    Returns:
        [B] int64 and [B] float32.
    """
    logprobs = scaled(logits, temperature).log_softmax(-1)
    reached = probabilities(logits, temperature, top_p).double().cumsum(-1)
    # The largest u may round up to the total: a token before the end must then be taken.
    target = torch.minimum(u[:, None] * reached[:, -1:], reached[:, -1:] * (1 - 2**-52))
    # Among NaN a search finds no place.
    token = torch.searchsorted(reached, target, right=True).squeeze(1).clamp_max(logits.shape[1] - 1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)
