"""Projections of one input as one product, for generation: q with k and v, and the gate with what it gates.

And the same in FP8: half the bytes of bfloat16, which is what a decode step waits for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.network.language_model import DecoderBlock, LanguageModel

FP8 = torch.float8_e4m3fn


class FP8Linear(nn.Module):
    """y = (x_fp8 · s_x) (W_fp8 · s_W)ᵀ + b, a scale for each row of x and of W.

    Args:
        weight: [out, in].
        bias: [out], or None.

    Source: Micikevicius et al., 2022, arXiv:2209.05433.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.values: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        values, scale = ak.quantize_fp8(weight.detach())
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def product(self, x: Tensor) -> Tensor:
        """Without the bias: [T, in] to [T, out] in the dtype of x."""
        x_fp8, scale = ak.quantize_fp8(x)
        if x.is_cuda and x.dtype == torch.bfloat16:
            return torch._scaled_mm(x_fp8, self.values.t(), scale, self.scale.t(), out_dtype=x.dtype)
        # Elsewhere the same numbers in float32: products of e4m3 values are exact in it.
        return (F.linear(x_fp8.float(), self.values.float()) * scale * self.scale.t()).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class JointLinear:
    """Linear layers of one input: weight [Σ out, in] and bias [Σ out] that their parameters are views of."""

    def __init__(self, layers: Sequence[nn.Linear]):
        self.weight = torch.cat([layer.weight for layer in layers])
        self.bias = None if layers[0].bias is None else torch.cat([bias_of(layer) for layer in layers])
        at = 0
        for layer in layers:
            layer.weight.data = self.weight[at : at + layer.out_features]
            if self.bias is not None:
                layer.bias.data = self.bias[at : at + layer.out_features]
            at += layer.out_features

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def bias_of(layer: nn.Linear) -> Tensor:
    """[out]; zeros where a layer has none."""
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias


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
