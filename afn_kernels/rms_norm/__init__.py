"""Root-mean-square normalisation over the last axis."""

import torch

from afn_kernels import _check
from afn_kernels._registry import Impl, Op

OP = Op("rms_norm", (Impl("reference", "afn_kernels.rms_norm.reference:rms_norm", why="plain PyTorch"),))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6, impl: str = "auto") -> torch.Tensor:
    """y = x / sqrt(mean(x²) + eps) · weight, the mean over the last axis in float32.

    The normalised value is rounded to x's dtype before the weight multiplies it, as the Qwen2 family does.

    Args:
        x: [..., D], any floating dtype.
        weight: [D], same dtype as x.
        eps: added to the mean square.
        impl: "auto" or the name of an implementation.

    Returns:
        [..., D], dtype of x.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: Zhang and Sennrich, 2019, arXiv:1910.07467.
    """
    _check.same_dtype_and_device("rms_norm", x=x, weight=weight)
    _check.last_dim("rms_norm", "weight", weight, x.shape[-1])
    return OP.choose(impl, x, weight, eps=eps)(x, weight, eps=eps)
