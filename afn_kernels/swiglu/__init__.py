"""The gated activation of Llama- and Qwen-family feed-forward blocks."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op

OP = Op(
    "swiglu",
    (
        _triton.implementation("afn_kernels.swiglu.boundary:swiglu", why="two reads and one write of every element"),
        Impl("reference", "afn_kernels.swiglu.reference:swiglu", why="plain PyTorch"),
    ),
)


def swiglu(gate: torch.Tensor, up: torch.Tensor, *, impl: str = "auto") -> torch.Tensor:
    """y = gate · sigmoid(gate) · up.

    The two may be halves of one fused projection: rows may be any distance apart, nothing is copied.

    Args:
        gate: [..., D], any floating dtype.
        up: [..., D], same shape and dtype.
        impl: "auto" or the name of an implementation.

    Under torch.autocast nothing is cast: projections under it give both in one dtype.

    Returns:
        [..., D], dtype of gate.

    Raises:
        ValueError: shapes or dtypes that differ; an implementation that cannot run here.

    Source: Shazeer, 2020, arXiv:2002.05202.
    """
    _check.same_as("swiglu", "up", up, "gate", gate)
    return OP.choose(impl, gate, up)(gate, up)
