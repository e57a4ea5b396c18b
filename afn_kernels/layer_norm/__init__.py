"""Layer normalisation over the last axis."""

import torch

from afn_kernels import _check
from afn_kernels._registry import Impl, Op

OP = Op("layer_norm", (Impl("reference", "afn_kernels.layer_norm.reference:layer_norm", why="plain PyTorch"),))


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, eps: float = 1e-5, impl: str = "auto"
) -> torch.Tensor:
    """y = (x − mean(x)) / sqrt(var(x) + eps) · weight + bias, statistics over the last axis in float32.

    Args:
        x: [..., D], any floating dtype.
        weight: [D], same dtype as x.
        bias: [D], same dtype as x.
        eps: added to the biased variance.
        impl: "auto" or the name of an implementation.

    Returns:
        [..., D], dtype of x.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: Ba, Kiros and Hinton, 2016, arXiv:1607.06450.
    """
    _check.same_dtype_and_device("layer_norm", x=x, weight=weight, bias=bias)
    _check.last_dim("layer_norm", "weight", weight, x.shape[-1])
    _check.last_dim("layer_norm", "bias", bias, x.shape[-1])
    return OP.choose(impl, x, weight, bias, eps=eps)(x, weight, bias, eps=eps)
