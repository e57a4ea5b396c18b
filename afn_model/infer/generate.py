"""Autoregressive generation for a batch of conversations of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from afn_model.infer.decoder import decode
from afn_model.infer.sampling_params import SamplingParams

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch


@torch.inference_mode()
def generate(
    model: Network, batch: Batch, params: SamplingParams, *, on_token: Callable[[int, int], None] | None = None
) -> list[list[int]]:
    """New tokens for each conversation.

    Args:
        model: the model.
        batch: packed prompts, each ending where the answer begins.
        params: how tokens are picked. A seed stands for the whole batch: random answers depend on what is in it.
        on_token: called with (conversation, token) as soon as each token is known.

    Returns:
        Token ids without the stop token, ``params.n`` lists for each conversation.

    Raises:
        ValueError: an empty prompt, a prompt that leaves no room in the context, or scores that are NaN or infinite.
    """
    return [rollout.answer for rollout in decode(model, batch, params, on_token=on_token)]
