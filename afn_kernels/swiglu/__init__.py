"""The gated activation of Llama- and Qwen-family feed-forward blocks."""

from typing import overload

import torch

from afn_kernels import _check, _device, _triton
from afn_kernels._fp8_output import output_block
from afn_kernels._registry import Impl, Op


def _supports(gate, up, *, block=None) -> str:
    if block is None:
        return _triton.supports(gate, up)
    if block == (1, 0) and gate.shape[-1] > 65536:
        return f"a row of {gate.shape[-1]} elements does not fit one program"
    return _triton.supports(gate, up) or _device.fp8(gate.device)


OP = Op(
    "swiglu",
    (
        _triton.implementation(
            "afn_kernels.swiglu.boundary:swiglu", _supports, why="two reads and one write of every element"
        ),
        Impl("reference", "afn_kernels.swiglu.reference:swiglu", why="plain PyTorch"),
    ),
)


@overload
def swiglu(
    gate: torch.Tensor,
    up: torch.Tensor,
    *,
    out_dtype: None = None,
    block: str | tuple[int, int] = "row",
    impl: str = "auto",
) -> torch.Tensor: ...


@overload
def swiglu(
    gate: torch.Tensor,
    up: torch.Tensor,
    *,
    out_dtype: torch.dtype,
    block: str | tuple[int, int] = "row",
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


def swiglu(
    gate: torch.Tensor,
    up: torch.Tensor,
    *,
    out_dtype: torch.dtype | None = None,
    block: str | tuple[int, int] = "row",
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y = gate · sigmoid(gate) · up.

    The two may be halves of one fused projection: rows may be any distance apart, nothing is copied.

    Args:
        gate: [..., D], any floating dtype.
        up: [..., D], same shape and dtype.
        out_dtype: float8_e4m3fn quantises y, [T, D] and rounded to the dtype of gate, as ``quantize_fp8`` does; without
            gradient. None leaves it as it is.
        block: with ``out_dtype`` what shares a scale: "row" or (1, 128).
        impl: "auto" or the name of an implementation.

    Under torch.autocast nothing is cast: projections under it give both in one dtype.

    Returns:
        [..., D], dtype of gate. With ``out_dtype`` codes and scales: those of ``quantize_fp8(y, block=block)`` to the
        bit, where y is the same implementation's.

    Raises:
        ValueError: shapes or dtypes that differ; an implementation that cannot run here.

    Source: Shazeer, 2020, arXiv:2002.05202.
    """
    _check.same_as("swiglu", "up", up, "gate", gate)
    sides = output_block("swiglu", out_dtype, block, gate, up)
    options = {} if sides is None else {"block": sides}
    return OP.choose(impl, gate, up, **options)(gate, up, **options)
