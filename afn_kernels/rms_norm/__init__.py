"""Root-mean-square normalisation over the last axis, with the residual addition that comes before it."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(x, weight, *, residual, eps) -> str:
    if x.shape[-1] > 65536:
        return f"a row of {x.shape[-1]} elements does not fit one program"
    return _triton.supports(x, weight, residual)


OP = Op(
    "rms_norm",
    (
        _triton.implementation(
            "afn_kernels.rms_norm.boundary:rms_norm", _supports, why="one read and one write of every row"
        ),
        Impl("reference", "afn_kernels.rms_norm.reference:rms_norm", why="plain PyTorch"),
    ),
)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y = h / sqrt(mean(h²) + eps) · weight with h = x + residual, the mean over the last axis in float32.

    The normalised value is rounded to x's dtype before the weight multiplies it, as the Qwen2 family does.

    Args:
        x: [..., D], any floating dtype.
        weight: [D], same dtype as x.
        residual: like x, added before the normalisation; None adds nothing.
        eps: added to the mean square.
        impl: "auto" or the name of an implementation.

    Returns:
        y [..., D] in the dtype of x; with ``residual`` also h, rounded to that dtype, from which y is computed.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: Zhang and Sennrich, 2019, arXiv:1910.07467.
    """
    _check.same_dtype_and_device("rms_norm", x=x, weight=weight)
    _check.last_dim("rms_norm", "weight", weight, x.shape[-1])
    if residual is not None:
        _check.same_as("rms_norm", "residual", residual, "x", x)
    return OP.choose(impl, x, weight, residual=residual, eps=eps)(x, weight, residual=residual, eps=eps)
