"""pool_norm as torch.compile and autograd see its Triton kernels."""

import torch

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows
from afn_kernels.rote.boundary import CONSTANTS, constants

UNTURNED = None, None, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, False


def _forward_fake(x, weight, bias, cu_seqlens, length, total, *_):
    mean = x.new_empty(total, dtype=torch.float32)
    source = x.new_empty(total if cu_seqlens is not None else 0, dtype=torch.int32)
    return x.new_empty(total, x.shape[1]), mean, torch.empty_like(mean), source


def _setup_context(ctx, inputs, output):
    x, weight, bias, cu_seqlens, ctx.length, _, _, window, frame, *ctx.constants = inputs
    _, mean, rstd, source = output
    ctx.mark_non_differentiable(mean, rstd, source)
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, weight, cu_seqlens, source, mean, rstd, window, frame)


def _backward(ctx, dy, *_):
    need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
    *saved, window, frame = ctx.saved_tensors
    dx, sums = BACKWARD(as_rows(dy), *saved, ctx.length, need_dx, need_dw, need_db, window, frame, *ctx.constants)
    dw = sums[0].to(saved[1].dtype) if need_dw else None
    return dx, dw, sums[-1].to(ctx.bias_dtype) if need_db else None


def _backward_fake(dy, x, weight, cu_seqlens, source, mean, rstd, length, need_dx, need_dw, need_db, *_):
    return x.new_empty(x.shape if need_dx else 0), mean.new_empty(need_dw + need_db, x.shape[1])


FORWARD = Boundary(
    "pool_norm(Tensor x, Tensor weight, Tensor bias, Tensor? cu_seqlens, SymInt length, SymInt total, float eps,"
    f" Tensor? window, Tensor? frame, {CONSTANTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    "afn_kernels.pool_norm.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary(
    "pool_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor? cu_seqlens, Tensor source, Tensor mean,"
    " Tensor rstd, SymInt length, bool need_dx, bool need_dw, bool need_db, Tensor? window, Tensor? frame,"
    f" {CONSTANTS}) -> (Tensor, Tensor)",
    "afn_kernels.pool_norm.triton:backward",
    _backward_fake,
)


def _turn(window, frame, **options):
    return window.flatten().contiguous(), frame.flatten().contiguous(), *constants(**options)


def pool_norm(x, weight, bias, *, cu_seqlens, total, eps, rote):
    """The "triton" row of the op's table."""
    weight, bias = weight.contiguous(), bias.contiguous()
    turn = UNTURNED if rote is None else _turn(**rote)
    if cu_seqlens is not None:
        if total is None:
            total = int((cu_seqlens.diff() // 2).sum())  # waits for the GPU
        return FORWARD(as_rows(x), weight, bias, cu_seqlens.contiguous(), 0, total, eps, *turn)[0]
    *batch, length, width = x.shape
    rows = as_rows(x)
    total = rows.shape[0] // max(length, 1) * (length // 2)
    y = FORWARD(rows, weight, bias, None, length, total, eps, *turn)[0]
    return y.view(*batch, length // 2, width)
