"""A linear layer's product where a kernel goes on from it: an adapter beside the weight must not be lost there."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def product(layer: nn.Linear, x: Tensor) -> Tensor:
    """W x without the bias, [..., in] to [..., out], with the layer's adapter where it has one."""
    own = getattr(layer, "product", None)
    return F.linear(x, layer.weight) if own is None else own(x)


def operands(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """(x', W') with x' W'ᵀ = ``product(layer, x)``, for kernels that read the weight themselves."""
    own = getattr(layer, "operands", None)
    return (x, layer.weight) if own is None else own(x)
