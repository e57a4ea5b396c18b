"""Depthwise causal convolution over time, as the blocks of a streaming codec begin."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op

WIDEST = 32  # taps that a kernel unrolls


def _supports(x, weight, bias, *, state) -> str:
    if weight.shape[1] > WIDEST:
        return f"{weight.shape[1]} taps, and it unrolls at most {WIDEST}"
    return _triton.supports(x, weight, bias, state)


OP = Op(
    "causal_conv",
    (
        _triton.implementation(
            "afn_kernels.causal_conv.boundary:causal_conv",
            _supports,
            avoid=lambda x, *_, **__: _triton.avoid(x),
            why="one read and one write; all gradients in one pass",
        ),
        Impl("reference", "afn_kernels.causal_conv.reference:causal_conv", why="plain PyTorch"),
    ),
)


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """y[t] = bias + Σ_j weight[:, j] · x[t − k + 1 + j] for each channel by itself, j from 0 to k − 1.

    What comes before the first input is ``state``, or zeros. Sums are float32, from the oldest input to the newest, and
    rounded once, so chunks of any length give the bits of the whole: the next ``state`` is the last k − 1 rows of
    ``torch.cat((state, x), 1)``. A NaN or an infinity reaches the k outputs that read it, and no others.

    Args:
        x: [B, T, C], any floating dtype; B, T or C may be 0.
        weight: [C, k], same dtype as x, or float32 where x is bfloat16 or float16; k is at least 1.
        bias: [C], in a dtype that a weight may have; None adds nothing.
        state: [B, k − 1, C], the inputs before x, in the dtype of x; None is zeros.
        impl: "auto" or the name of an implementation.

    Returns:
        y [B, T, C] in the dtype of x. Differentiable in all tensors; gradients have the dtypes of their inputs.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: van den Oord et al., 2016, arXiv:1609.03499; depthwise as in ConvNeXt, Liu et al., 2022, arXiv:2201.03545.
    """
    _check.are_tensors("causal_conv", weight=weight)
    _check.mixed("causal_conv", x, weight=weight, bias=bias)
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2] or not weight.shape[1]:
        raise _check.misfit("causal_conv", x=(x, "B T C"), weight=(weight, "C k"))
    if bias is not None:
        _check.last_dim("causal_conv", "bias", bias, x.shape[2])
    if state is not None:
        _check.alike("causal_conv", x=x, state=state)
        if state.shape != (x.shape[0], weight.shape[1] - 1, x.shape[2]):
            raise _check.misfit("causal_conv", x=(x, "B T C"), weight=(weight, "C k"), state=(state, "B k−1 C"))
    return OP.choose(impl, x, weight, bias, state=state)(x, weight, bias, state=state)
