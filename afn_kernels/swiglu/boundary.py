"""swiglu as torch.compile and autograd see its Triton kernels."""

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _forward_fake(gate, up):
    return gate.new_empty(gate.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    gate, up = ctx.saved_tensors
    need_dgate, need_dup = ctx.needs_input_grad
    dgate, dup = BACKWARD(as_rows(dy), gate, up, need_dgate, need_dup)
    return dgate if need_dgate else None, dup if need_dup else None


def _backward_fake(dy, gate, up, need_dgate, need_dup):
    return gate.new_empty(gate.shape if need_dgate else 0), gate.new_empty(gate.shape if need_dup else 0)


FORWARD = Boundary(
    "swiglu(Tensor gate, Tensor up) -> Tensor",
    "afn_kernels.swiglu.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary(
    "swiglu_backward(Tensor dy, Tensor gate, Tensor up, bool need_dgate, bool need_dup) -> (Tensor, Tensor)",
    "afn_kernels.swiglu.triton:backward",
    _backward_fake,
)


def swiglu(gate, up):
    """The "triton" row of the op's table."""
    return FORWARD(as_rows(gate), as_rows(up)).view(gate.shape)
