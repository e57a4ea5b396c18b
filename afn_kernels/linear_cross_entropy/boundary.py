"""linear_cross_entropy and linear_logprob as torch.compile and autograd see their kernels.

The forward computes the gradients of the loss too, while it has the logits: one matrix product fewer than recomputing
them. They are for an upstream gradient of 1; the backward multiplies them by the actual one: in place in eager calls,
where nobody else holds them, while torch.compile decides for itself.
"""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows

# PyTorch names no public way to ask; where a release lacks this one, gradients are copied.
_keep_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _empty_like(x, needed):
    return x.new_empty(x.shape if needed else 0)


def _loss_fake(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, mean: bool, z_loss: float,
    supervised: int | None, need_dh: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss, factor = hidden.new_empty((), dtype=torch.float32), hidden.new_empty((), dtype=torch.float32)
    return loss, _empty_like(hidden, need_dh), _empty_like(weight, need_dw), factor


def _loss_context(ctx, inputs, output):
    _, dh, dw, factor = output
    ctx.mark_non_differentiable(dh, dw, factor)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dh, dw, factor)


def _loss_backward(ctx, dloss, *_):
    dh, dw, factor = ctx.saved_tensors
    if dloss is None:
        return None
    factor = factor * dloss
    return tuple((x.float() * factor).to(x.dtype) for x in (dh, dw))


def _loss_backward_in_place(ctx, dloss, *_):
    dh, dw, factor = ctx.saved_tensors
    if dloss is None:
        return None
    if _keep_graph():  # another backward may come
        dh, dw = dh.clone(), dw.clone()
    SCALE(dh, dw, factor * dloss)
    return dh, dw


def _scale_fake(dh: Tensor, dw: Tensor, factor: Tensor) -> None:
    pass


def _logprob_fake(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32)


def _logprob_backward(ctx, dlogprob):
    return LOGPROB_BACKWARD(dlogprob.contiguous(), *ctx.saved_tensors, *ctx.needs_input_grad[:2])


def _logprob_backward_fake(
    dlogprob: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, need_dh: bool, need_dw: bool
) -> tuple[Tensor, Tensor]:
    return _empty_like(hidden, need_dh), _empty_like(weight, need_dw)


LOSS = Boundary(
    "linear_cross_entropy",
    "afn_kernels.linear_cross_entropy.triton:loss",
    _loss_fake,
    setup_context=_loss_context,
    backward=_loss_backward,
    eager_backward=_loss_backward_in_place,
)
SCALE = Boundary(
    "linear_cross_entropy_scale",
    "afn_kernels.linear_cross_entropy.triton:scale",
    _scale_fake,
    writes=("dh", "dw"),
)
LOGPROB = Boundary(
    "linear_logprob", "afn_kernels.linear_cross_entropy.triton:logprob", _logprob_fake, backward=_logprob_backward
)
LOGPROB_BACKWARD = Boundary(
    "linear_logprob_backward", "afn_kernels.linear_cross_entropy.triton:logprob_backward", _logprob_backward_fake
)


def linear_cross_entropy(hidden, weight, labels, *, ignore_index, reduction, z_loss, supervised):
    """The "triton" row of the op's table."""
    wanted = torch.is_grad_enabled()
    loss, *_ = LOSS(
        as_rows(hidden), as_rows(weight), labels.contiguous(), ignore_index, reduction == "mean", z_loss, supervised,
        wanted and hidden.requires_grad, wanted and weight.requires_grad,
    )  # fmt: skip
    return loss


def linear_logprob(hidden, weight, targets):
    """The "triton" row of the op's table."""
    return LOGPROB(as_rows(hidden), as_rows(weight), targets.contiguous())
