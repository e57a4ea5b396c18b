"""cross_entropy as torch.compile and autograd see its Triton kernels: a loss per row. PyTorch reduces them."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _fake(
    logits: Tensor, labels: Tensor, ignore_index: int, label_smoothing: float, softcap: float | None, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    loss, top, total = (logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(3))
    return loss, top, total


def _context(ctx, inputs, output):
    logits, labels, *ctx.options = inputs
    _, top, total = output
    ctx.mark_non_differentiable(top, total)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, labels, top, total)


def _backward(ctx, dloss, *_):
    return None if dloss is None else BACKWARD(dloss.contiguous(), *ctx.saved_tensors, *ctx.options)


def _backward_fake(
    dloss: Tensor, logits: Tensor, labels: Tensor, top: Tensor, total: Tensor, ignore_index: int,
    label_smoothing: float, softcap: float | None, z_loss: float,
) -> Tensor:  # fmt: skip
    return logits.new_empty(logits.shape)


ROWS = Boundary(
    "cross_entropy", "afn_kernels.cross_entropy.triton:forward", _fake, setup_context=_context, backward=_backward
)
BACKWARD = Boundary("cross_entropy_backward", "afn_kernels.cross_entropy.triton:backward", _backward_fake)


def cross_entropy(logits, labels, *, ignore_index, label_smoothing, softcap, z_loss, reduction):
    """The "triton" row of the op's table."""
    loss, *_ = ROWS(as_rows(logits), labels.reshape(-1).contiguous(), ignore_index, label_smoothing, softcap, z_loss)
    if reduction == "none":
        return loss.view(labels.shape)
    total = loss.sum(dtype=torch.float64)
    return (total / (labels != ignore_index).sum().clamp(min=1) if reduction == "mean" else total).float()
