"""Answers to a packed batch of prompts: an engine that lives as long as the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.infer.costs import Costs
from afn_model.infer.engine import Engine
from afn_model.infer.finite import NotFiniteError, first_not_finite
from afn_model.infer.pages import PAGE
from afn_model.infer.request import Growing
from afn_model.infer.rollout import Rollout
from afn_model.infer.sampling_params import SamplingParams

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch

SLOTS = 256  # answers that grow at the same time


@torch.inference_mode()
def generate(
    model: Network, batch: Batch, params: SamplingParams, *, on_token: Callable[[int, int], None] | None = None
) -> list[list[int]]:
    """New tokens for each conversation.

    Args:
        model: the model.
        batch: packed prompts, each ending where the answer begins.
        params: how tokens are picked. A random answer is a function of the seed, of its conversation's place in the
            batch and of its number among the answers to it.
        on_token: called with (answer, token) as soon as each token is known.

    Returns:
        Token ids without the stop token, ``params.n`` lists for each conversation.

    Raises:
        ValueError: what ``Engine.add`` raises.
        NotFiniteError: scores that are NaN or infinite, with the tensor that they come from; a ValueError.
    """
    return [rollout.answer for rollout in _rollouts(model, batch, params, on_token=on_token)]


@torch.no_grad()
def sample(
    model: Network,
    batch: Batch,
    params: SamplingParams,
    *,
    keys: Sequence[int] | None = None,
    encoded: tuple[Tensor, list[int]] | None = None,
) -> list[Rollout]:
    """Draws token t of sample s to the prompt of key k by inverting the distribution at u(seed, k, s, t) in [0, 1).

    The numbers u are a hash, so an answer depends neither on the other prompts of the batch nor on how many ranks share
    the work, up to the rounding of logits that are computed together.

    Args:
        model: the model.
        batch: packed prompts, each ending where the answer begins.
        params: how tokens are drawn: with a seed, at a temperature above 0.
        keys: a whole number for each prompt; its place in the batch if None.
        encoded: what ``model.encode_batch`` returned for this batch, when it is known already.

    Returns:
        An answer per prompt and sample, in this order.

    Raises:
        ValueError: no temperature, no seed or no tokens, and what ``Engine.add`` raises.
        NotFiniteError: scores that are NaN or infinite.
    """
    if params.temperature == 0 or params.seed is None or params.max_new_tokens < 1:
        raise ValueError(f"{params}: temperature > 0, a seed and max_new_tokens >= 1 are expected")
    return _rollouts(model, batch, params, keys=keys, encoded=encoded)


def _rollouts(
    model: Network,
    batch: Batch,
    params: SamplingParams,
    *,
    keys: Sequence[int] | None = None,
    encoded: tuple[Tensor, list[int]] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Rollout]:
    lengths = batch.cu_seqlens.diff().tolist()
    engine = Engine(
        model,
        pages=pages_for(lengths, params.n, params.max_new_tokens),
        slots=min(max(1, len(lengths) * params.n), SLOTS),
        costs=Costs(),  # nobody waits for a token
    )
    requests = engine.add(batch, params, keys=keys, encoded=encoded)
    answers = [answer for request in requests for answer in request.answers]
    if on_token is not None:
        for place, answer in enumerate(answers):
            answer.on_token = partial(on_token, place)
    engine.run()
    for place, answer in enumerate(answers):
        if answer.error is not None:
            raise explained(model, batch, place // params.n, answer)
    return [
        Rollout(
            prompt=place // params.n,
            sample=answer.sample,
            tokens=answer.tokens,
            logprobs=torch.tensor(answer.logprobs) if params.temperature > 0 else None,
            finished=answer.reason == "stop",
        )
        for place, answer in enumerate(answers)
    ]


def pages_for(lengths: Sequence[int], n: int, new: int) -> int:
    """Pages for as many answers as grow at the same time.

    Args:
        lengths: tokens of each prompt.
        n: answers to each.
        new: tokens of an answer, at most.
    """
    own = -(-(new + PAGE) // PAGE)  # an answer's own pages, that of the prompt's end included
    answers = min(len(lengths) * n, SLOTS)
    spare = answers * (answers < len(lengths) * n)  # the next ones begin while others still grow
    prompts = sorted((length // PAGE for length in lengths), reverse=True)[:answers]
    return max(1, sum(prompts) + answers * own + spare)


def explained(model: Network, batch: Batch, prompt: int, answer: Growing) -> NotFiniteError:
    """What is wrong where the scores of an answer's next token are not finite."""
    said = [answer.tokens if index == prompt else [] for index in range(len(batch.cu_seqlens) - 1)]
    return NotFiniteError(f"{answer.error}: {first_not_finite(model, batch, said)}", prompt)
