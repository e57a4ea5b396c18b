"""Random answers with their log-probabilities: several to each prompt, the prompt and its audio computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.hashing import key
from afn_model.infer.decoder import Decoder, prompt_lengths
from afn_model.infer.generate import probabilities
from afn_model.infer.rollout import Rollout

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch


@torch.no_grad()
def sample(
    model: Network,
    batch: Batch,
    max_new_tokens: int,
    *,
    seed: int,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    keys: Sequence[int] | None = None,
    stop_token_ids: tuple[int, ...] | None = None,
    encoded: tuple[Tensor, list[int]] | None = None,
    any_running: Callable[[bool], bool] = bool,
) -> list[Rollout]:
    """Draws token t of sample s to the prompt of key k by inverting the distribution at u(seed, k, s, t) in [0, 1).

    The numbers u are a hash, so an answer depends neither on the other prompts of the batch nor on how many ranks share
    the work, up to the rounding of scores that are computed together.

    Args:
        model: the model.
        batch: packed prompts, each ending where the answer begins.
        max_new_tokens: at most this many tokens per answer, the stop token included.
        seed: of all answers.
        samples: answers to each prompt.
        temperature: scores are divided by it.
        top_p: sample from the smallest set of tokens whose probability reaches this.
        keys: a whole number for each prompt; its place in the batch if None.
        stop_token_ids: tokens that end an answer; default ``model.config.stop_token_ids``.
        encoded: what ``model.encode_batch`` returned for this batch, when it is known already.
        any_running: called at every step with whether an answer of this batch still grows; decoding goes on as long as
            it returns True. Ranks that share the model's weights must decode equally long.

    Returns:
        An answer per prompt and sample, in this order.

    Raises:
        ValueError: an option out of range, another number of keys than of prompts, a prompt that is empty or leaves no
            room in the context.
    """
    if temperature <= 0 or not 0 < top_p <= 1 or samples < 1 or max_new_tokens < 1:
        raise ValueError(
            f"temperature {temperature}, top_p {top_p}, {samples} samples, {max_new_tokens} new tokens: "
            "temperature > 0, 0 < top_p <= 1, and at least one sample and token are expected"
        )
    stop = set(model.config.stop_token_ids if stop_token_ids is None else stop_token_ids)
    lengths = prompt_lengths(model, batch)
    keys = range(len(lengths)) if keys is None else keys
    if len(keys) != len(lengths):
        raise ValueError(f"{len(keys)} keys for {len(lengths)} prompts")
    if not lengths:
        return []
    context = model.config.text.max_positions
    limits = [min(max_new_tokens, context - length) for length in lengths for _ in range(samples)]
    row_keys = [key(seed, k, s) for k in keys for s in range(samples)]
    tokens: list[list[int]] = [[] for _ in limits]
    logprobs: list[list[float]] = [[] for _ in limits]

    decoder = Decoder(model, batch, max_new_tokens, samples=samples, encoded=encoded)
    rows = list(range(len(limits)))  # which answer each of the decoder's sequences is
    growing = set(rows)
    step = 0
    while True:
        u = torch.tensor([key(row_keys[row], step) / 2**64 for row in rows], dtype=torch.float64)
        token_B, logprob_B = draw(decoder.scores(), u.to(model.device), temperature, top_p)
        for row, token, logprob in zip(rows, token_B.tolist(), logprob_B.tolist(), strict=True):
            if row in growing:
                tokens[row].append(token)
                logprobs[row].append(logprob)
                if token in stop or len(tokens[row]) == limits[row]:
                    growing.remove(row)
        step += 1
        if not any_running(bool(growing)):
            break
        if growing and 2 * len(growing) <= len(rows):
            kept = torch.tensor([i for i, row in enumerate(rows) if row in growing], device=model.device)
            decoder.keep(kept)
            token_B, rows = token_B[kept], [row for row in rows if row in growing]
        decoder.feed(token_B)
    return [
        Rollout(row // samples, row % samples, ids, torch.tensor(logprobs[row]), ids[-1] in stop)
        for row, ids in enumerate(tokens)
    ]


def draw(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """The first token whose cumulative probability exceeds u, and its log-probability before ``top_p`` cuts.

    Args:
        logits: [B, vocabulary] float32.
        u: [B] float64 in [0, 1).
        temperature, top_p: as in ``sample``.

    Returns:
        [B] int64 and [B] float32.
    """
    logprobs = (logits / temperature).log_softmax(-1)
    reached = probabilities(logits, temperature, top_p).double().cumsum(-1)
    # The largest u may round up to the total: a token before the end must then be taken.
    target = torch.minimum(u[:, None] * reached[:, -1:], reached[:, -1:] * (1 - 2**-52))
    token = torch.searchsorted(reached, target, right=True).squeeze(1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)
