"""swiglu as torch.compile and autograd see its Triton kernels."""

from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _forward_fake(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _backward(ctx, dy):
    return BACKWARD(as_rows(dy), *ctx.saved_tensors, *ctx.needs_input_grad)


def _backward_fake(dy: Tensor, gate: Tensor, up: Tensor, need_dgate: bool, need_dup: bool) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape if need_dgate else 0), gate.new_empty(gate.shape if need_dup else 0)


FORWARD = Boundary("swiglu", "afn_kernels.swiglu.triton:forward", _forward_fake, backward=_backward)
BACKWARD = Boundary("swiglu_backward", "afn_kernels.swiglu.triton:backward", _backward_fake)


def swiglu(gate, up):
    """The "triton" row of the op's table."""
    return FORWARD(as_rows(gate), as_rows(up)).view(gate.shape)
