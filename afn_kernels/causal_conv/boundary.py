"""causal_conv as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, before: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] - before, x.shape[2])


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.before = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _backward(ctx, dy):
    x, weight = ctx.saved_tensors
    need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
    dx, sums = BACKWARD(_adjacent(dy), x, weight, ctx.before, need_dx, need_dw or need_db)
    dw = sums[:-1].T.to(weight.dtype) if need_dw else None
    return dx, dw, sums[-1].to(ctx.bias_dtype) if need_db else None


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, before: int, need_dx: bool, need_dw: bool
) -> tuple[Tensor, Tensor]:
    sums = (weight.shape[1] + 1, x.shape[2]) if need_dw else (0,)
    return x.new_empty(x.shape if need_dx else 0), x.new_empty(sums, dtype=torch.float32)


FORWARD = Boundary(
    "causal_conv",
    "afn_kernels.causal_conv.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("causal_conv_backward", "afn_kernels.causal_conv.triton:backward", _backward_fake)


def _adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def causal_conv(x, weight, bias, *, state):
    """The "triton" row of the op's table. A state is put in front: a copy of a chunk, which a stream keeps short."""
    before = 0 if state is None else weight.shape[1] - 1
    x = _adjacent(x) if state is None else torch.cat((state, x), 1)
    return FORWARD(x, weight.contiguous(), None if bias is None else bias.contiguous(), before)
