"""Projections of one input as one product, for generation: q with k and v, and the gate with what it gates.

And the same in FP8: half the bytes of bfloat16, which is what a decode step waits for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from afn_model.network.joint import FP8Linear, JointLinear, bias_of
from afn_model.network.language_model import DecoderBlock, LanguageModel


@torch.no_grad()
def fuse(model: LanguageModel) -> None:
    """Lays the weights of projections that read the same input behind one another.

    The layers' parameters become views of the joint weights, so nothing is held twice and what is written into them is
    seen. Layers with an adapter, quantised or sharded weights, or hooks stay as they are.
    """
    for layer in blocks(model):
        attention, mlp = layer.self_attn, layer.mlp
        for owner, parts in (
            (attention, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (mlp, (mlp.gate_proj, mlp.up_proj)),
        ):
            if all(plain(part) for part in parts):
                owner.fused = JointLinear(parts)


@torch.no_grad()
def quantise_fp8(model: LanguageModel) -> None:
    """Turns the weights of all blocks to FP8, for generation alone; embeddings, norms and the head stay as they are.

    Raises:
        ValueError: a layer that is more than a plain linear one (an adapter, a quantised base).
    """
    for index, layer in enumerate(blocks(model)):
        attention, mlp = layer.self_attn, layer.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        for part in (*parts, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            if not plain(part):
                raise ValueError(
                    f"layer {index}: a {type(part).__name__} cannot be turned to FP8: merge adapters first"
                )
        attention.fused = joint_fp8(parts[:3])
        mlp.fused = joint_fp8((mlp.gate_proj, mlp.up_proj))
        for owner, name in ((attention, "o_proj"), (mlp, "down_proj")):
            part = getattr(owner, name)
            setattr(owner, name, FP8Linear(part.weight, part.bias))
        for owner, names in ((attention, ("q_proj", "k_proj", "v_proj")), (mlp, ("gate_proj", "up_proj"))):
            for name in names:  # what they held is in the joint weights
                setattr(owner, name, nn.Identity())


def joint_fp8(layers: Sequence[nn.Linear]) -> FP8Linear:
    bias = None if layers[0].bias is None else torch.cat([bias_of(layer) for layer in layers])
    return FP8Linear(torch.cat([layer.weight for layer in layers]), bias)


def blocks(model: LanguageModel) -> list[DecoderBlock]:
    return [layer for layer in model.layers if isinstance(layer, DecoderBlock)]


def plain(layer: nn.Module) -> bool:
    """Whether a layer is a linear one and nothing else, on one device."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not hooks
