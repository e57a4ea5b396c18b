"""rms_norm as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _forward_fake(x: Tensor, weight: Tensor, residual: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rstd = x.new_empty(x.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape if residual is not None else 0), rstd


def _setup_context(ctx, inputs, output):
    x, weight, residual, _ = inputs
    _, h, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)
    ctx.added = residual is not None
    ctx.save_for_backward(h if ctx.added else x, weight, rstd)


def _backward(ctx, dy, dh, _):
    h, weight, rstd = ctx.saved_tensors
    dy = torch.zeros_like(h) if dy is None else dy
    dh = dh if ctx.added else None
    dx, dw = BACKWARD(as_rows(dy), None if dh is None else as_rows(dh), h, weight, rstd, ctx.needs_input_grad[1])
    return dx, dw, dx if ctx.added else None


def _backward_fake(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, rstd: Tensor, need_dw: bool
) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), weight.new_empty(weight.shape if need_dw else 0)


FORWARD = Boundary(
    "rms_norm",
    "afn_kernels.rms_norm.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("rms_norm_backward", "afn_kernels.rms_norm.triton:backward", _backward_fake)


def rms_norm(x, weight, *, residual, eps):
    """The "triton" row of the op's table."""
    rows = None if residual is None else as_rows(residual)
    y, h, _ = FORWARD(as_rows(x), weight.contiguous(), rows, eps)
    return y.view(x.shape) if residual is None else (y.view(x.shape), h.view(x.shape))
