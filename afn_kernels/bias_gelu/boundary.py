"""bias_gelu as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _forward_fake(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output):
    x, bias, ctx.approximate = inputs
    ctx.save_for_backward(x, bias)


def _backward(ctx, dy):
    x, bias = ctx.saved_tensors
    need_dx, need_db = ctx.needs_input_grad[:2]
    dx, db = BACKWARD(as_rows(dy), x, bias, need_dx, need_db, ctx.approximate)
    return dx, db.to(bias.dtype) if need_db else None


def _backward_fake(
    dy: Tensor, x: Tensor, bias: Tensor | None, need_dx: bool, need_db: bool, approximate: str
) -> tuple[Tensor, Tensor]:
    db = x.new_empty(x.shape[1] if need_db else 0, dtype=torch.float32)
    return x.new_empty(x.shape if need_dx else 0), db


FORWARD = Boundary(
    "bias_gelu",
    "afn_kernels.bias_gelu.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("bias_gelu_backward", "afn_kernels.bias_gelu.triton:backward", _backward_fake)


def bias_gelu(x, bias, *, approximate):
    """The "triton" row of the op's table."""
    return FORWARD(as_rows(x), None if bias is None else bias.contiguous(), approximate).view(x.shape)
