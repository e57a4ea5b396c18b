"""layer_norm as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape if residual is not None else 0), mean, torch.empty_like(mean)


def _setup_context(ctx, inputs, output):
    x, weight, _, residual, _ = inputs
    _, h, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.added = residual is not None
    ctx.save_for_backward(h if ctx.added else x, weight, mean, rstd)


def _backward(ctx, dy, dh, *_):
    h, weight, mean, rstd = ctx.saved_tensors
    dy = torch.zeros_like(h) if dy is None else dy
    dh = as_rows(dh) if ctx.added and dh is not None else None
    need_dw, need_db = ctx.needs_input_grad[1:3]
    dx, sums = BACKWARD(as_rows(dy), dh, h, weight, mean, rstd, need_dw, need_db)
    return dx, sums[0] if need_dw else None, sums[-1] if need_db else None, dx if ctx.added else None


def _backward_fake(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, need_dw: bool, need_db: bool
) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), weight.new_empty(need_dw + need_db, h.shape[1])


FORWARD = Boundary(
    "layer_norm",
    "afn_kernels.layer_norm.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("layer_norm_backward", "afn_kernels.layer_norm.triton:backward", _backward_fake)


def layer_norm(x, weight, bias, *, residual, eps):
    """The "triton" row of the op's table."""
    rows = None if residual is None else as_rows(residual)
    y, h, _, _ = FORWARD(as_rows(x), weight.contiguous(), bias.contiguous(), rows, eps)
    return y.view(x.shape) if residual is None else (y.view(x.shape), h.view(x.shape))
