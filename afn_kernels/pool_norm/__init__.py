"""Stride-2 mean over time, then layer normalisation: how the audio encoder ends."""

import torch

from afn_kernels import _check
from afn_kernels._registry import Impl, Op

OP = Op("pool_norm", (Impl("reference", "afn_kernels.pool_norm.reference:pool_norm", why="plain PyTorch"),))


def pool_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> torch.Tensor:
    """y[t] = LayerNorm((x[2t] + x[2t+1]) / 2); the last frame of an odd sequence is dropped.

    Args:
        x: [..., S, D], or packed [T, D] with ``cu_seqlens``; any floating dtype.
        weight: [D], same dtype as x.
        bias: [D], same dtype as x.
        cu_seqlens: [N + 1] int32, boundaries of the packed sequences; each is pooled by itself.
        eps: added to the biased variance.
        impl: "auto" or the name of an implementation.

    Returns:
        [..., S // 2, D], or packed [Σ lengths[n] // 2, D].

    Raises:
        ValueError: shapes or dtypes that do not fit; ``cu_seqlens`` that do not cover x.

    Source: Chu et al., 2024, arXiv:2407.10759 (pooling); Ba et al., 2016 (normalisation).
    """
    _check.same_dtype_and_device("pool_norm", x=x, weight=weight, bias=bias)
    _check.last_dim("pool_norm", "weight", weight, x.shape[-1])
    _check.last_dim("pool_norm", "bias", bias, x.shape[-1])
    if cu_seqlens is not None:
        if x.dim() != 2:
            raise ValueError(f"pool_norm: packed x must be [T, D], got {tuple(x.shape)}")
        _check.cu_seqlens("pool_norm", "cu_seqlens", cu_seqlens, x.shape[0])
    elif x.dim() < 2:
        raise ValueError(f"pool_norm: x must be [..., S, D], got {tuple(x.shape)}")
    call = OP.choose(impl, x, weight, bias, cu_seqlens=cu_seqlens, eps=eps)
    return call(x, weight, bias, cu_seqlens=cu_seqlens, eps=eps)
