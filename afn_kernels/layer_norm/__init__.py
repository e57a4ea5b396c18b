"""Layer normalisation over the last axis, with the residual addition that comes before it."""

from typing import overload

import torch

from afn_kernels import _autocast, _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(x, weight, bias, *, residual, eps) -> str:
    if not x.shape[-1]:
        return "its rows have no elements"
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


@overload
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    residual: None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> torch.Tensor: ...


@overload
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y = (h − mean(h)) / sqrt(var(h) + eps) · weight + bias with h = x + residual, statistics in float32.

    Mean and variance are those of the last axis.

    Args:
        x: [..., D], any floating dtype.
        weight: [D], same dtype as x, or float32 where x is bfloat16 or float16; None multiplies by nothing.
        bias: [D], in a dtype that a weight may have; None adds nothing.
        residual: [..., D], added before the normalisation, in a dtype that a weight may have; None adds nothing.
        eps: added to the biased variance.
        impl: "auto" or the name of an implementation.

    Under torch.autocast on a GPU everything is cast to float32, and so is the result, as for PyTorch's layer_norm.

    Returns:
        y [..., D] in the dtype of x; with ``residual`` also h, rounded to the residual's dtype, from which y is
        computed: a float32 stream stays exact under bfloat16 activations. Gradients have the dtypes of their inputs.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: Ba, Kiros and Hinton, 2016, arXiv:1607.06450.
    """
    x, weight, bias, residual = _autocast.full(x, weight, bias, residual)
    _check.mixed("layer_norm", x, weight=weight, bias=bias, residual=residual)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _check.last_dim("layer_norm", name, parameter, x.shape[-1])
    _check.same_shape("layer_norm", "residual", residual, "x", x)
    call = OP.choose(impl, x, weight, bias, residual=residual, eps=eps)
    return call(x, weight, bias, residual=residual, eps=eps)
