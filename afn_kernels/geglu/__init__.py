"""The gated activation of Gemma-family and T5 v1.1 feed-forward blocks."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(gate, up, *, approximate) -> str:
    return _triton.supports(gate, up)


OP = Op(
    "geglu",
    (
        _triton.implementation(
            "afn_kernels.geglu.boundary:geglu", _supports, why="two reads and one write of every element"
        ),
        Impl("reference", "afn_kernels.geglu.reference:geglu", why="plain PyTorch"),
    ),
)


def geglu(gate: torch.Tensor, up: torch.Tensor, *, approximate: str = "none", impl: str = "auto") -> torch.Tensor:
    """y = GELU(gate) · up with GELU(u) = u/2 · (1 + erf(u / √2)).

    With ``approximate="tanh"``, GELU(u) = u/2 · (1 + tanh(√(2/π) · (u + 0.044715 u³))), which transformers calls
    gelu_pytorch_tanh. The two may be halves of one fused projection: rows may be any distance apart, nothing is copied.

    Args:
        gate: [..., D], any floating dtype.
        up: [..., D], same shape and dtype.
        approximate: "none" or "tanh", as of torch.nn.GELU.
        impl: "auto" or the name of an implementation.

    Under torch.autocast nothing is cast: projections under it give both in one dtype.

    Returns:
        [..., D], dtype of gate.

    Raises:
        ValueError: shapes or dtypes that differ; an unknown approximation; an implementation that cannot run here.

    Source: Shazeer, 2020, arXiv:2002.05202; Hendrycks and Gimpel, 2016, arXiv:1606.08415.
    """
    _check.same_as("geglu", "up", up, "gate", gate)
    _check.approximation("geglu", approximate)
    return OP.choose(impl, gate, up, approximate=approximate)(gate, up, approximate=approximate)
