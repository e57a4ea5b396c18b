"""layer_norm as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _forward_fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[0], dtype=torch.float32)
    h = x.new_empty(0) if residual is None else residual.new_empty(x.shape)
    return x.new_empty(x.shape), h, mean, torch.empty_like(mean)


def _setup_context(ctx, inputs, output):
    x, weight, bias, residual, _ = inputs
    _, h, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.added, ctx.dtype, ctx.bias_dtype = residual is not None, x.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(h if ctx.added else x, weight, mean, rstd)


def _backward(ctx, dy, dh, *_):
    h, weight, mean, rstd = ctx.saved_tensors
    dy = h.new_zeros(h.shape, dtype=ctx.dtype) if dy is None else as_rows(dy)
    dh = as_rows(dh) if ctx.added and dh is not None else None
    need_dw, need_db = ctx.needs_input_grad[1:3]
    dx, dresidual, sums = BACKWARD(dy, dh, h, weight, mean, rstd, need_dw, need_db)
    dw = sums[0].to(weight.dtype) if need_dw else None
    db = sums[-1].to(ctx.bias_dtype) if need_db else None
    return dx, dw, db, dx if h.dtype == ctx.dtype else dresidual


def _backward_fake(
    dy: Tensor,
    dh: Tensor | None,
    h: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    need_dw: bool,
    need_db: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dresidual = h.new_empty(h.shape if h.dtype != dy.dtype else 0)
    return dy.new_empty(h.shape), dresidual, mean.new_empty(need_dw + need_db, h.shape[1])


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
    weight, bias = (None if parameter is None else parameter.contiguous() for parameter in (weight, bias))
    y, h, _, _ = FORWARD(as_rows(x), weight, bias, rows, eps)
    return y.view(x.shape) if residual is None else (y.view(x.shape), h.view(x.shape))
