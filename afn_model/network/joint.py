"""Linear layers for generation: several of one input as one product, and one in FP8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afn_kernels as ak

FP8 = torch.float8_e4m3fn


class FP8Rows(NamedTuple):
    """Inputs that are quantised already, with a scale [T, 1] for each row of codes [T, in], and the dtype they had."""

    codes: Tensor
    scale: Tensor
    dtype: torch.dtype


class FP8Linear(nn.Module):
    """y = (x_fp8 · s_x) (W_fp8 · s_W)ᵀ + b, a scale for each row of x and of W.

    Args:
        weight: [out, in].
        bias: [out], or None.

    It has the weights of the layers that it is made of alone; they are gone.

    Source: Micikevicius et al., 2022, arXiv:2209.05433.
    """

    alone = True

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.values: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        values, scale = ak.quantize_fp8(weight.detach())
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Codes and scales go where others go, in the dtypes that they have: ``.to(torch.bfloat16)`` is of the rest."""
        codes, scale = self.values, self.scale
        super()._apply(fn, recurse)
        if self.values.dtype != codes.dtype or self.scale.dtype != scale.dtype:
            self.values, self.scale = codes.to(self.values.device), scale.to(self.scale.device)
        return self

    def product(self, x: Tensor | FP8Rows, bias: Tensor | None = None) -> Tensor:
        """W x + bias, by default without: [T, in] to [T, out] in the dtype of x.

        Raises:
            ValueError: a gradient of x is wanted.
        """
        if not isinstance(x, FP8Rows) and torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("weights in FP8 are for generation and have no gradients: call it under torch.no_grad()")
        codes, scale = x[:2] if isinstance(x, FP8Rows) else ak.quantize_fp8(x)
        return ak.linear_fp8(codes, self.values, scale, self.scale, bias, out_dtype=x.dtype)

    def forward(self, x: Tensor | FP8Rows) -> Tensor:
        return self.product(x, self.bias)


class JointLinear:
    """Linear layers of one input: weight [Σ out, in] and bias [Σ out] that their parameters are views of."""

    alone = False

    def __init__(self, layers: Sequence[nn.Linear]):
        self.weight = torch.cat([layer.weight for layer in layers])
        self.bias = None if layers[0].bias is None else torch.cat([bias_of(layer) for layer in layers])
        at = 0
        for layer in layers:
            layer.weight.data = self.weight[at : at + layer.out_features]
            if self.bias is not None:
                layer.bias.data = self.bias[at : at + layer.out_features]
            at += layer.out_features

    def product(self, x: Any, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight, bias)


def bias_of(layer: nn.Linear) -> Tensor:
    """[out]; zeros where a layer has none."""
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
