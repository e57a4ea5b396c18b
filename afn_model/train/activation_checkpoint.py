"""Activation checkpointing: activations recomputed in the backward instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from afn_model.afnext import AFNext
    from afn_model.train.activation_offload import ActivationOffload

MODES = ("none", "encoder", "selective", "full")


def checkpoint_blocks(model: AFNext, mode: str, offload: ActivationOffload | None = None) -> None:
    """Makes blocks keep only their inputs between forward and backward, in place.

    "encoder" applies to the encoder's blocks, which are cheap, and "full" to every block of the language model too.
    "selective" applies to the encoder's blocks and every MLP of the language model, which holds three quarters of a
    block's activations: the decoder's attention, whose cost grows with the context, is not computed twice. A policy
    over ops (``create_selective_checkpoint_contexts``) would not see kernels that are launched directly: it would
    recompute attention and keep the large products. Call this before the model is sharded or compiled.

    Args:
        model: the model.
        mode: "none", "encoder", "selective" or "full".
        offload: where the inputs that are kept wait for the backward; on the GPU if None.

    Raises:
        ValueError: another mode.
    """
    if mode not in MODES:
        raise ValueError(f"no recomputation {mode!r}; there are {', '.join(MODES)}")
    if mode == "none":
        return
    layers = list(model.blocks)
    decoder = {"encoder": [], "selective": [getattr(layer, "mlp", layer) for layer in layers], "full": layers}[mode]
    for module in (*model.encoder.layers, *decoder):
        module.forward = _checkpointed(module, module.forward, offload)


def checkpoint_modules(modules: Iterable[nn.Module]) -> None:
    """Makes modules keep only their inputs between forward and backward, in place."""
    for module in modules:
        module.forward = _checkpointed(module, module.forward, None)


def _checkpointed(module: nn.Module, forward: Callable, offload: ActivationOffload | None) -> Callable:
    # A flag and not the parameters: held here, they would stay whole on every rank after the model is sharded.
    trained = any(parameter.requires_grad for parameter in module.parameters())

    @wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        reached = any(isinstance(x, torch.Tensor) and x.requires_grad for x in tree_leaves((args, kwargs)))
        if not torch.is_grad_enabled() or not (trained or reached):
            return forward(*args, **kwargs)
        with nullcontext() if offload is None else offload.inputs(args, kwargs):
            return checkpoint(forward, *args, **kwargs, use_reentrant=False, preserve_rng_state=False)

    return recomputed
