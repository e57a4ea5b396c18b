"""merge_embeddings as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _forward_fake(tokens: Tensor, audio: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), tokens.new_empty(tokens.shape[0], dtype=torch.int32)


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[2], output[1])


def _backward(ctx, dy, _):
    return BACKWARD(as_rows(dy), *ctx.saved_tensors, *ctx.needs_input_grad[:2])


def _backward_fake(
    dy: Tensor, rows: Tensor, source: Tensor, need_tokens: bool, need_audio: bool
) -> tuple[Tensor, Tensor]:
    return (
        dy.new_empty(dy.shape if need_tokens else 0),
        dy.new_empty((rows.shape[0], dy.shape[1]) if need_audio else 0),
    )


FORWARD = Boundary(
    "merge_embeddings",
    "afn_kernels.merge_embeddings.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("merge_embeddings_backward", "afn_kernels.merge_embeddings.triton:backward", _backward_fake)


def merge_embeddings(tokens, audio, rows):
    """The "triton" row of the op's table."""
    return FORWARD(as_rows(tokens), as_rows(audio), rows.contiguous())[0]
