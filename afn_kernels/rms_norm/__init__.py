"""Root-mean-square normalisation over the last axis, with the residual addition that comes before it."""

from typing import overload

import torch

from afn_kernels import _check, _device, _triton
from afn_kernels._fp8_output import output_block
from afn_kernels._registry import Impl, Op
from afn_kernels.cpu import avoid as _outside_inference
from afn_kernels.cpu import supports as _row_supports
from afn_kernels.cpu import usable


def _supports(x, weight, *, residual, eps, offset, block=None) -> str:
    if not x.shape[-1]:
        return "its rows have no elements"
    if x.shape[-1] > 65536:
        return f"a row of {x.shape[-1]} elements does not fit one program"
    return _triton.supports(x, weight, residual) or (_device.fp8(x.device) if block else "")


def _supports_cpu(x, weight, *, residual, eps, offset, block=None) -> str:
    if block:
        return "it does not quantise"
    return _row_supports(x, weight, residual) if x.shape[-1] else "its rows have no elements"


OP = Op(
    "rms_norm",
    (
        _triton.implementation(
            "afn_kernels.rms_norm.boundary:rms_norm", _supports, why="one read and one write of every row"
        ),
        Impl(
            "cpu",
            "afn_kernels.rms_norm.boundary:rms_norm_cpu",
            available=usable,
            supports=_supports_cpu,
            avoid=_outside_inference,
            why="compiled SIMD kernel, one read of every row; its bits depend on the row alone",
        ),
        Impl("reference", "afn_kernels.rms_norm.reference:rms_norm", why="plain PyTorch"),
    ),
)


@overload
def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    residual: None = None,
    eps: float = 1e-6,
    offset: float | None = None,
    out_dtype: None = None,
    block: str | tuple[int, int] = "row",
    impl: str = "auto",
) -> torch.Tensor: ...


@overload
def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    residual: torch.Tensor,
    eps: float = 1e-6,
    offset: float | None = None,
    out_dtype: None = None,
    block: str | tuple[int, int] = "row",
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None,
    eps: float = 1e-6,
    offset: float | None = None,
    out_dtype: None = None,
    block: str | tuple[int, int] = "row",
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...


@overload
def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float | None = None,
    out_dtype: torch.dtype,
    block: str | tuple[int, int] = "row",
    impl: str = "auto",
) -> tuple[torch.Tensor, ...]: ...


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float | None = None,
    out_dtype: torch.dtype | None = None,
    block: str | tuple[int, int] = "row",
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """y = h / sqrt(mean(h²) + eps) · weight with h = x + residual, the mean over the last axis in float32.

    The normalised value is rounded to the dtype of h before the weight multiplies it, as the Llama and Qwen families
    do: a float32 weight gives what one of theirs does in front of a projection under autocast. With ``offset``,
    y = h / sqrt(mean(h²) + eps) · (offset + weight) is computed in float32 and rounded once, as the Gemma family does:
    ``offset=1.0`` for Gemma 1 to 3, ``offset=0.0`` for Gemma 3n and 4.

    Args:
        x: [..., D], any floating dtype.
        weight: [D], same dtype as x, or float32 where x is bfloat16 or float16; None multiplies by nothing.
        residual: [..., D], added before the normalisation, in a dtype that a weight may have; None adds nothing.
        eps: added to the mean square.
        offset: added to the weight; None is the rounding of Llama.
        out_dtype: float8_e4m3fn quantises y, [T, D] and rounded to the dtype of x, as ``quantize_fp8`` does; without
            gradient. None leaves it as it is.
        block: with ``out_dtype`` what shares a scale: "row" or (1, 128).
        impl: "auto" or the name of an implementation.

    Under torch.autocast nothing is cast: x and a residual are taken as they come, beside float32 weights.

    Returns:
        y [..., D] in the dtype of x; with ``residual`` also h, rounded to the residual's dtype, from which y is
        computed: a float32 stream stays exact under bfloat16 activations. Gradients have the dtypes of their inputs.
        With ``out_dtype`` codes and scales in the place of y: those of ``quantize_fp8(y, block=block)`` to the bit,
        where y is the same implementation's.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: Zhang and Sennrich, 2019, arXiv:1910.07467; ``offset``: Gemma Team, 2024, arXiv:2403.08295.
    """
    _check.mixed("rms_norm", x, weight=weight, residual=residual)
    if weight is not None:
        _check.last_dim("rms_norm", "weight", weight, x.shape[-1])
    elif offset is not None:
        raise ValueError(f"rms_norm: offset is {offset}, but there is no weight to add it to")
    _check.same_shape("rms_norm", "residual", residual, "x", x)
    options = {"residual": residual, "eps": eps, "offset": None if offset is None else float(offset)}
    sides = output_block("rms_norm", out_dtype, block, x, weight, residual)
    if sides is not None:
        options["block"] = sides
    return OP.choose(impl, x, weight, **options)(x, weight, **options)
