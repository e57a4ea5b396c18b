"""rms_norm as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows
from afn_kernels.quantize_fp8.layout import scale_layout


def _forward_fake(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float, offset: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    h = x.new_empty(0) if residual is None else residual.new_empty(x.shape)
    return x.new_empty(x.shape), h, x.new_empty(x.shape[0], dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    x, weight, residual, _, ctx.offset = inputs
    _, h, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)
    ctx.added, ctx.dtype = residual is not None, x.dtype
    ctx.save_for_backward(h if ctx.added else x, weight, rstd)


def _backward(ctx, dy, dh, _):
    h, weight, rstd = ctx.saved_tensors
    dy = h.new_zeros(h.shape, dtype=ctx.dtype) if dy is None else as_rows(dy)
    dh = as_rows(dh) if ctx.added and dh is not None else None
    dx, dresidual, dw = BACKWARD(dy, dh, h, weight, rstd, ctx.offset, ctx.needs_input_grad[1])
    dw = dw.to(weight.dtype) if ctx.needs_input_grad[1] else None
    return dx, dw, dx if h.dtype == ctx.dtype else dresidual


def _backward_fake(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor | None, rstd: Tensor, offset: float | None, need_dw: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dresidual = h.new_empty(h.shape if h.dtype != dy.dtype else 0)
    return dy.new_empty(h.shape), dresidual, rstd.new_empty(h.shape[1] if need_dw else 0)


def _forward_fp8_fake(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float, offset: float | None, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    h = x.new_empty(0) if residual is None else residual.new_empty(x.shape)
    shape, strides = scale_layout(*x.shape, 1, width)
    scale = torch.empty_strided(shape, strides, dtype=torch.float32, device=x.device)
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), scale, h


def _forward_cpu_fake(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float, offset: float | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if residual is None else x.shape)


FORWARD = Boundary(
    "rms_norm",
    "afn_kernels.rms_norm.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("rms_norm_backward", "afn_kernels.rms_norm.triton:backward", _backward_fake)
FORWARD_FP8 = Boundary("rms_norm_fp8", "afn_kernels.rms_norm.triton:forward_fp8", _forward_fp8_fake)
FORWARD_CPU = Boundary("rms_norm_cpu", "afn_kernels.rms_norm.cpu:forward", _forward_cpu_fake)


def rms_norm(x, weight, *, residual, eps, offset, block=None):
    """The "triton" row of the op's table."""
    rows = None if residual is None else as_rows(residual)
    if block is not None:
        weight = None if weight is None else weight.contiguous()
        codes, scale, h = FORWARD_FP8(as_rows(x), weight, rows, eps, offset, block[1])
        return (codes, scale) if residual is None else (codes, scale, h)
    y, h, _ = FORWARD(as_rows(x), None if weight is None else weight.contiguous(), rows, eps, offset)
    return y.view(x.shape) if residual is None else (y.view(x.shape), h.view(x.shape))


def rms_norm_cpu(x, weight, *, residual, eps, offset, block=None):
    """The "cpu" row of the op's table."""
    rows = None if residual is None else as_rows(residual)
    y, h = FORWARD_CPU(as_rows(x), None if weight is None else weight.contiguous(), rows, eps, offset)
    if x.dim() != 2:
        y, h = y.view(x.shape), h if residual is None else h.view(x.shape)
    return y if residual is None else (y, h)
