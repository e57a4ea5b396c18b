"""Random answers with their log-probabilities: several to each prompt, the prompt and its audio computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.infer.decoder import decode
from afn_model.infer.rollout import Rollout
from afn_model.infer.sampling_params import SamplingParams

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch


@torch.no_grad()
def sample(
    model: Network,
    batch: Batch,
    params: SamplingParams,
    *,
    keys: Sequence[int] | None = None,
    encoded: tuple[Tensor, list[int]] | None = None,
    any_running: Callable[[bool], bool] = bool,
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
        any_running: called at every step with whether an answer of this batch still grows; decoding goes on as long as
            it returns True. Ranks that share the model's weights must decode equally long.

    Returns:
        An answer per prompt and sample, in this order.

    Raises:
        ValueError: no temperature, no seed or no tokens, another number of keys than of prompts, a prompt that is empty
            or leaves no room in the context, or scores that are NaN or infinite.
    """
    if params.temperature == 0 or params.seed is None or params.max_new_tokens < 1:
        raise ValueError(f"{params}: temperature > 0, a seed and max_new_tokens >= 1 are expected")
    keys = range(len(batch.cu_seqlens) - 1) if keys is None else keys
    return decode(model, batch, params, keys=keys, encoded=encoded, any_running=any_running)
