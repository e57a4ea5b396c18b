"""Prompts computed once, then one token per sequence and step until every answer has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.infer.batch_sampler import BatchSampler
from afn_model.infer.finite import NotFiniteError, first_not_finite
from afn_model.infer.history import History
from afn_model.infer.rollout import Rollout
from afn_model.infer.sampling_params import SamplingParams
from afn_model.network.head import sampling_logits
from afn_model.network.kv_cache import KVCache, SharedKVCache

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch


def decode(
    model: Network,
    batch: Batch,
    params: SamplingParams,
    *,
    keys: Sequence[int] | None = None,
    encoded: tuple[Tensor, list[int]] | None = None,
    history: History | None = None,
    any_running: Callable[[bool], bool] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Rollout]:
    """``params.n`` answers to each prompt of a batch: one packed prefill, then one token per sequence and step.

    Args:
        model: the model.
        batch: packed prompts, each ending where the answer begins.
        params: how tokens are picked and when an answer ends.
        keys: a whole number for each prompt, which with ``params.seed`` decides its random tokens; their
            log-probabilities are returned too. None draws from a torch generator.
        encoded: what ``model.encode_batch`` returned for this batch, when it is known already.
        history: of the conversation that the only prompt goes on with; what it holds is not computed again, and this
            prompt and answer are added to it.
        any_running: called at every step with whether an answer of this batch still grows; decoding goes on as long as
            it returns True, for at most ``params.max_new_tokens`` steps. Never called where there is nothing to do: no
            prompts, or no tokens to generate. Ranks that decode together must each have a prompt.
        on_token: called with (answer, token) as soon as each token is known; stop tokens are left out.

    Returns:
        An answer per prompt and sample, in this order.

    Raises:
        ValueError: a prompt that is empty or leaves no room in the context, another number of keys than of prompts, a
            history for several answers.
        NotFiniteError: scores that are NaN or infinite, with the tensor that they come from; a ValueError.
    """
    stop = set(model.config.stop_token_ids if params.stop_token_ids is None else params.stop_token_ids)
    context, lengths = model.config.text.max_positions, prompt_lengths(model, batch)
    if keys is not None and len(keys) != len(lengths):
        raise ValueError(f"{len(keys)} keys for {len(lengths)} prompts")
    if history is not None and len(lengths) * params.n != 1:
        raise ValueError(f"a history is that of one answer, not of {len(lengths) * params.n}")
    limits = [min(params.max_new_tokens, context - length) for length in lengths for _ in range(params.n)]
    tokens: list[list[int]] = [[] for _ in limits]
    logprobs: list[list[float]] = [[] for _ in limits]
    growing = set(range(len(limits)))
    if not growing or params.max_new_tokens == 0:
        return [Rollout(row // params.n, row % params.n, [], None, False) for row in range(len(limits))]

    # Another rank may have shorter prompts, and then goes on for longer.
    longest = max(limits) if any_running is None else params.max_new_tokens
    decoder = Decoder(model, batch, longest, samples=params.n, encoded=encoded, history=history)
    sampler = BatchSampler(model, batch, params, keys)
    for step in range(1, longest + 1):
        token_B, logprob_B, finite_B = sampler.next(decoder.logits())
        said = None if logprob_B is None else logprob_B.tolist()
        # One transfer for both: -1 is no token.
        found = torch.where(finite_B, token_B, -1).tolist()
        for i, (row, token) in enumerate(zip(sampler.rows, found, strict=True)):
            if row not in growing:
                continue
            if token < 0:
                if history is not None:
                    history.clear()
                raise not_finite_at(model, batch, row, tokens, params.n)
            tokens[row].append(token)
            if said is not None:
                logprobs[row].append(said[i])
            if token in stop or len(tokens[row]) == limits[row]:
                growing.remove(row)
            if token not in stop and on_token is not None:
                on_token(row, token)
        going_on = bool(growing) if any_running is None else any_running(bool(growing))
        if not going_on or step == longest:
            break
        # Selecting may copy keys and values, so it waits until half of the sequences can go.
        if growing and 2 * len(growing) <= len(sampler.rows):
            kept = evened([row in growing for row in sampler.rows], [row // params.n for row in sampler.rows])
            decoder.select(kept)
            sampler.select(kept)
            token_B = token_B[kept]
        decoder.decode_step(token_B)
    if history is not None:
        history.append(tokens[0][:-1])  # the last one was not fed
    return [
        Rollout(
            prompt=row // params.n,
            sample=row % params.n,
            tokens=ids,
            logprobs=None if sampler.keys is None else torch.tensor(logprobs[row]),
            finished=ids[-1] in stop,
        )
        for row, ids in enumerate(tokens)
    ]


def evened(growing: list[bool], prompts: list[int]) -> list[int]:
    """Which sequences to keep: those that grow, and others, so that all prompts which have any left have equally many.

    Attention reads a prompt once for groups of equal size.

    Args:
        growing: whether each sequence grows.
        prompts: the prompt of each, in ascending order.
    """
    rows: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(index)
    size = max(sum(growing[index] for index in group) for group in rows.values())
    kept = []
    for group in rows.values():
        if any(growing[index] for index in group):
            kept += sorted(sorted(group, key=lambda index: not growing[index])[:size])
    return kept


def not_finite_at(model: Network, batch: Batch, row: int, tokens: list[list[int]], samples: int) -> NotFiniteError:
    """What is wrong where the scores of an answer's next token are not finite."""
    prompt = row // samples
    said = [tokens[row] if index == prompt else [] for index in range(len(tokens) // samples)]
    where = first_not_finite(model, batch, said)
    return NotFiniteError(f"the scores of token {len(tokens[row])} are NaN or infinite: {where}", prompt)


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
        max_new_tokens: tokens that each sequence may grow by.
        samples: sequences per prompt; the prompt's keys and values are computed once and held once.
        encoded: what ``model.encode_batch`` returned for this batch, when it is known already.
        history: of the conversation that the only prompt goes on with.
    """

    def __init__(
        self,
        model: Network,
        batch: Batch,
        max_new_tokens: int,
        *,
        samples: int = 1,
        encoded: tuple[Tensor, list[int]] | None = None,
        history: History | None = None,
    ):
        self.model = model
        if history is not None:
            hidden, positions = history.prefill(model, batch, max_new_tokens)
            assert history.cache is not None
            self.cache, self.hidden, self.positions = history.cache, hidden[-1:], positions[-1:]
            return
        lengths, place = batch.cu_seqlens.diff(), (model.dtype, model.device)
        if samples == 1:
            self.cache = KVCache(model.config.text, len(lengths), int(lengths.max()) + max_new_tokens, *place)
        else:
            self.cache = SharedKVCache(model.config.text, lengths.tolist(), samples, max_new_tokens, *place)
        hidden, positions = model.hidden(batch, encoded=encoded, cache=self.cache)
        last = torch.repeat_interleave(batch.cu_seqlens[1:].long().to(model.device) - 1, samples)
        if isinstance(self.cache, SharedKVCache):
            self.cache.branch()
        self.hidden, self.positions = hidden[last], positions[last]

    def logits(self) -> Tensor:
        """Float32 logits of the next token of each sequence, [sequences, vocabulary]."""
        return sampling_logits(self.model.lm_head, self.hidden)

    def decode_step(self, token_B: Tensor) -> None:
        """Takes the next token of each sequence, [sequences] int64."""
        language_model = self.model.language_model
        self.positions = self.positions + self.model.text_advance
        self.hidden = language_model(language_model.embed_tokens(token_B), self.positions, cache=self.cache)

    def select(self, sequences: list[int]) -> None:
        """Keeps only the given sequences, numbers in ascending order."""
        self.cache.select(sequences)
        self.hidden, self.positions = self.hidden[sequences], self.positions[sequences]
