"""Stride-2 mean over time, then layer normalisation: how the audio encoder ends."""

from collections.abc import Mapping
from typing import Any

import torch

from afn_kernels import _autocast, _check, _triton
from afn_kernels._registry import Impl, Op
from afn_kernels.rote import DEFAULTS, checked


def _supports(x, weight, bias, *, cu_seqlens, total, eps, rote) -> str:
    if x.shape[-1] > 32768:
        return f"a row of {x.shape[-1]} elements does not fit one program"
    if cu_seqlens is not None and total is None and cu_seqlens.device.type == "meta":
        return "cu_seqlens have no values here: total is needed"
    return _triton.supports(x, weight, bias, cu_seqlens, *((rote["window"], rote["frame"]) if rote else ()))


OP = Op(
    "pool_norm",
    (
        _triton.implementation(
            "afn_kernels.pool_norm.boundary:pool_norm", _supports, why="one read of every row, one write of every mean"
        ),
        Impl("reference", "afn_kernels.pool_norm.reference:pool_norm", why="plain PyTorch"),
    ),
)


def pool_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    total: int | None = None,
    eps: float = 1e-5,
    rote: Mapping | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """y[t] = LayerNorm((x[2t] + x[2t+1]) / 2); the last frame of an odd sequence is dropped.

    With ``rote`` the rows are those that ``afn_kernels.rote`` makes of y; the triton implementation turns a row in
    float32 before it is written, where the two ops in a row round it to the dtype of x and read it again.

    Args:
        x: [..., S, D], or packed [T, D] with ``cu_seqlens``; any floating dtype.
        weight: [D], same dtype as x, or float32 where x is bfloat16 or float16.
        bias: [D], in a dtype that a weight may have.
        cu_seqlens: [N + 1] int32, boundaries of the packed sequences; each is pooled by itself.
        total: Σ lengths[n] // 2, the rows of the output, for a caller who knows the lengths on the host. Without it
            ``cu_seqlens`` on a GPU are read back, which waits for all work in flight. On a GPU it is taken on trust:
            rows beyond the sum are NaN, gradients of rows left out are undefined.
        eps: added to the biased variance.
        rote: arguments of ``afn_kernels.rote`` by name: ``window`` and ``frame``, integers of one entry per row of
            the output ([..., S // 2] or [total]; their number is the default of ``total``), and any others that
            are not to have their defaults, but ``impl``.
        impl: "auto" or the name of an implementation.

    Under torch.autocast on a GPU everything is cast to float32, and so is the result, as for PyTorch's layer_norm.

    Returns:
        [..., S // 2, D], or packed [Σ lengths[n] // 2, D], dtype of x. Gradients have the dtypes of their inputs.

    Raises:
        ValueError: shapes or dtypes that do not fit; ``cu_seqlens`` that do not cover x; a ``total`` that is not
            theirs (checked on the CPU); what ``afn_kernels.rote`` raises for its arguments, or one it does not have.

    Source: Chu et al., 2024, arXiv:2407.10759 (pooling); Ba et al., 2016 (normalisation); for ``rote``, as there.
    """
    x, weight, bias = _autocast.full(x, weight, bias)
    _check.mixed("pool_norm", x, weight=weight, bias=bias)
    _check.last_dim("pool_norm", "weight", weight, x.shape[-1])
    _check.last_dim("pool_norm", "bias", bias, x.shape[-1])
    if cu_seqlens is not None:
        if x.dim() != 2:
            raise ValueError(f"pool_norm: packed x must be [T, D], got {tuple(x.shape)}")
        _check.cu_seqlens("pool_norm", "cu_seqlens", cu_seqlens, x.shape[0], x)
        if rote and "window" in rote and total is None:
            total = rote["window"].numel()
        _check_total(total, cu_seqlens, x.shape[0])
    elif x.dim() < 2:
        raise ValueError(f"pool_norm: x must be [..., S, D], got {tuple(x.shape)}")
    elif total is not None:
        raise ValueError(f"pool_norm: total is {total}, but there are no cu_seqlens")
    if rote is not None:
        rows: Any = (*x.shape[:-2], x.shape[-2] // 2) if cu_seqlens is None else (total,)
        rote = _check_rote(rote, rows, x)
    options = {"cu_seqlens": cu_seqlens, "total": total, "eps": eps, "rote": rote}
    return OP.choose(impl, x, weight, bias, **options)(x, weight, bias, **options)


def _check_rote(rote: Mapping, rows: tuple[int, ...], x: torch.Tensor) -> dict:
    missing = [name for name in ("window", "frame") if name not in rote]
    unknown = [name for name in rote if name not in ("window", "frame", *DEFAULTS)]
    if missing or unknown:
        raise ValueError(f"pool_norm: rote lacks {missing} and has {unknown}, which afn_kernels.rote has not")
    window, frame = rote["window"], rote["frame"]
    options = {name: rote.get(name, default) for name, default in DEFAULTS.items()}
    return {"window": window, "frame": frame} | checked(rows, x, window, frame, options)


def _check_total(total: int | None, cu_seqlens: torch.Tensor, frames: int) -> None:
    if total is None:
        return
    if not 0 <= total <= frames // 2:
        raise ValueError(f"pool_norm: total is {total}, but {frames} frames make 0 to {frames // 2} rows")
    if _check.readable(cu_seqlens) and total != (found := int((cu_seqlens.diff() // 2).sum())):
        raise ValueError(f"pool_norm: total is {total}, but the sequences make {found} rows")
