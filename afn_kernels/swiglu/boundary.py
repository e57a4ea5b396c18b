"""swiglu as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows
from afn_kernels.quantize_fp8.layout import scale_layout


def _forward_fake(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _backward(ctx, dy):
    return BACKWARD(as_rows(dy), *ctx.saved_tensors, *ctx.needs_input_grad)


def _backward_fake(dy: Tensor, gate: Tensor, up: Tensor, need_dgate: bool, need_dup: bool) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape if need_dgate else 0), gate.new_empty(gate.shape if need_dup else 0)


def _forward_fp8_fake(gate: Tensor, up: Tensor, width: int) -> tuple[Tensor, Tensor]:
    shape, strides = scale_layout(*gate.shape, 1, width)
    scale = torch.empty_strided(shape, strides, dtype=torch.float32, device=gate.device)
    return gate.new_empty(gate.shape, dtype=torch.float8_e4m3fn), scale


FORWARD = Boundary("swiglu", "afn_kernels.swiglu.triton:forward", _forward_fake, backward=_backward)
FORWARD_FP8 = Boundary("swiglu_fp8", "afn_kernels.swiglu.triton:forward_fp8", _forward_fp8_fake)
BACKWARD = Boundary("swiglu_backward", "afn_kernels.swiglu.triton:backward", _backward_fake)


def swiglu(gate, up, *, block=None):
    """The "triton" row of the op's table."""
    if block is not None:
        return FORWARD_FP8(as_rows(gate), as_rows(up), block[1])
    return FORWARD(as_rows(gate), as_rows(up)).view(gate.shape)
