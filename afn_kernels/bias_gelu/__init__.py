"""Bias and exact GELU in one step."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op

OP = Op(
    "bias_gelu",
    (
        _triton.implementation(
            "afn_kernels.bias_gelu.boundary:bias_gelu", why="one read and one write of every element"
        ),
        Impl("reference", "afn_kernels.bias_gelu.reference:bias_gelu", why="plain PyTorch"),
    ),
)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor, *, impl: str = "auto") -> torch.Tensor:
    """y = u/2 · (1 + erf(u / √2)) with u = x + bias.

    Args:
        x: [..., D], any floating dtype.
        bias: [D], same dtype as x.
        impl: "auto" or the name of an implementation.

    Returns:
        [..., D], dtype of x.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: Hendrycks and Gimpel, 2016, arXiv:1606.08415.
    """
    _check.same_dtype_and_device("bias_gelu", x=x, bias=bias)
    _check.last_dim("bias_gelu", "bias", bias, x.shape[-1])
    return OP.choose(impl, x, bias)(x, bias)
