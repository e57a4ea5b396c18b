"""Layer normalisation over the last axis, with the residual addition that comes before it."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(x, weight, bias, *, residual, eps) -> str:
    if x.shape[-1] > 32768:
        return f"a row of {x.shape[-1]} elements does not fit one program"
    return _triton.supports(x, weight, bias, residual)


OP = Op(
    "layer_norm",
    (
        _triton.implementation(
            "afn_kernels.layer_norm.boundary:layer_norm", _supports, why="one read and one write of every row"
        ),
        Impl("reference", "afn_kernels.layer_norm.reference:layer_norm", why="plain PyTorch"),
    ),
)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y = (h − mean(h)) / sqrt(var(h) + eps) · weight + bias with h = x + residual, statistics in float32.

    Mean and variance are those of the last axis.

    Args:
        x: [..., D], any floating dtype.
        weight: [D], same dtype as x.
        bias: [D], same dtype as x.
        residual: like x, added before the normalisation; None adds nothing.
        eps: added to the biased variance.
        impl: "auto" or the name of an implementation.

    Returns:
        y [..., D] in the dtype of x; with ``residual`` also h, rounded to that dtype, from which y is computed.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: Ba, Kiros and Hinton, 2016, arXiv:1607.06450.
    """
    _check.same_dtype_and_device("layer_norm", x=x, weight=weight, bias=bias)
    _check.last_dim("layer_norm", "weight", weight, x.shape[-1])
    _check.last_dim("layer_norm", "bias", bias, x.shape[-1])
    if residual is not None:
        _check.same_as("layer_norm", "residual", residual, "x", x)
    call = OP.choose(impl, x, weight, bias, residual=residual, eps=eps)
    return call(x, weight, bias, residual=residual, eps=eps)
