"""Bias and GELU in one step."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(x, bias, *, approximate) -> str:
    return _triton.supports(x, bias)


OP = Op(
    "bias_gelu",
    (
        _triton.implementation(
            "afn_kernels.bias_gelu.boundary:bias_gelu", _supports, why="one read and one write of every element"
        ),
        Impl("reference", "afn_kernels.bias_gelu.reference:bias_gelu", why="plain PyTorch"),
    ),
)


def bias_gelu(
    x: torch.Tensor, bias: torch.Tensor | None = None, *, approximate: str = "none", impl: str = "auto"
) -> torch.Tensor:
    """y = u/2 · (1 + erf(u / √2)) with u = x + bias.

    With ``approximate="tanh"``, y = u/2 · (1 + tanh(√(2/π) · (u + 0.044715 u³))), as torch.nn.GELU has it.

    Args:
        x: [..., D], any floating dtype.
        bias: [D], same dtype as x, or float32 where x is bfloat16 or float16; None adds nothing.
        approximate: "none" or "tanh".
        impl: "auto" or the name of an implementation.

    Under torch.autocast nothing is cast: a bfloat16 x is taken beside a float32 bias.

    Returns:
        [..., D], dtype of x. Gradients have the dtypes of their inputs.

    Raises:
        ValueError: shapes or dtypes that do not fit; an unknown approximation; an implementation that cannot run here.

    Source: Hendrycks and Gimpel, 2016, arXiv:1606.08415.
    """
    _check.mixed("bias_gelu", x, bias=bias)
    if bias is not None:
        _check.last_dim("bias_gelu", "bias", bias, x.shape[-1])
    _check.approximation("bias_gelu", approximate)
    return OP.choose(impl, x, bias, approximate=approximate)(x, bias, approximate=approximate)
