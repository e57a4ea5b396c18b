"""Projections of one input as one product: q with k and v, and the gate with what it gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afn_model.network.language_model import DecoderBlock, LanguageModel


@torch.no_grad()
def fuse(model: LanguageModel) -> None:
    """Lays the weights of projections that read the same input behind one another, for generation.

    The layers' parameters become views of the joint weights, so nothing is held twice and what is written into them is
    seen. Layers with an adapter, quantised or sharded weights, or hooks stay as they are.
    """
    for layer in model.layers:
        assert isinstance(layer, DecoderBlock)
        attention, mlp = layer.self_attn, layer.mlp
        attention.fused = joined((attention.q_proj, attention.k_proj, attention.v_proj))
        mlp.fused = joined((mlp.gate_proj, mlp.up_proj))


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None] | None:
    """Weight [Σ out, in] and bias [Σ out] that the layers' parameters are views of; None where they cannot be."""
    if not all(plain(layer) for layer in layers):
        return None
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    at = 0
    for layer in layers:
        layer.weight.data = weight[at : at + layer.out_features]
        if bias is not None:
            layer.bias.data = bias[at : at + layer.out_features]
        at += layer.out_features
    return weight, bias


def plain(layer: nn.Module) -> bool:
    """Whether a layer is a linear one and nothing else, on one device."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not hooks
