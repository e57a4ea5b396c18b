"""Activations that are made again in the backward instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from afn_model.afnext import AFNext

MODES = ("none", "selective", "full")


def checkpoint_blocks(model: AFNext, mode: str) -> None:
    """Makes blocks keep only their inputs between forward and backward, in place.

    "full" does so with every block of the encoder and of the language model. "selective" does so with every MLP of the
    language model, which holds three quarters of a block's activations, and with the encoder's blocks, which are
    cheap: the decoder's attention, whose cost grows with the context, is not computed twice. Cutting by modules and
    not by a policy over ops is deliberate: kernels launched directly are unseen by such a policy, which would run
    attention again and keep the large products. Call it before the model is sharded or compiled.

    Args:
        model: the model.
        mode: "none", "selective" or "full".

    Raises:
        ValueError: another mode.
    """
    if mode not in MODES:
        raise ValueError(f"no recomputation {mode!r}; there are {', '.join(MODES)}")
    if mode == "none":
        return
    layers = model.language_model.layers
    for module in (*model.encoder.layers, *(layers if mode == "full" else [layer.mlp for layer in layers])):
        module.forward = _checkpointed(module, module.forward)


def _checkpointed(module: nn.Module, forward: Callable) -> Callable:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    @wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        reached = any(isinstance(x, torch.Tensor) and x.requires_grad for x in tree_leaves((args, kwargs)))
        if not torch.is_grad_enabled() or not (trained or reached):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, **kwargs, use_reentrant=False, preserve_rng_state=False)

    return recomputed
