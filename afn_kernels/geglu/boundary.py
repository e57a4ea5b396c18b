"""geglu as torch.compile and autograd see its Triton kernels."""

from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _forward_fake(gate: Tensor, up: Tensor, approximate: str) -> Tensor:
    return gate.new_empty(gate.shape)


def _setup_context(ctx, inputs, output):
    gate, up, ctx.approximate = inputs
    ctx.save_for_backward(gate, up)


def _backward(ctx, dy):
    return BACKWARD(as_rows(dy), *ctx.saved_tensors, *ctx.needs_input_grad[:2], ctx.approximate)


def _backward_fake(
    dy: Tensor, gate: Tensor, up: Tensor, need_dgate: bool, need_dup: bool, approximate: str
) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape if need_dgate else 0), gate.new_empty(gate.shape if need_dup else 0)


FORWARD = Boundary(
    "geglu",
    "afn_kernels.geglu.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("geglu_backward", "afn_kernels.geglu.triton:backward", _backward_fake)


def geglu(gate, up, *, approximate):
    """The "triton" row of the op's table."""
    return FORWARD(as_rows(gate), as_rows(up), approximate).view(gate.shape)
