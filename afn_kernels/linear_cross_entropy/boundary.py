"""linear_cross_entropy and linear_logprob as torch.compile and autograd see their kernels.

The gradients of the loss are made in its forward, while the logits are there: one product fewer than recomputing them.
They are those of an upstream gradient of 1, and the backward only multiplies them by what it was instead: in place in
eager calls, where nobody else has them; torch.compile decides for itself.
"""

import torch

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows

# PyTorch names no public way to ask; where a release lacks this one, gradients are copied.
_keep_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _empty_like(x, needed):
    return x.new_empty(x.shape if needed else 0)


def _loss_fake(hidden, weight, labels, ignore_index, mean, z_loss, supervised, need_dh, need_dw):
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
        return (None,) * 9
    factor = factor * dloss
    return _loss_grads(ctx, *((x.float() * factor).to(x.dtype) for x in (dh, dw)))


def _loss_backward_in_place(ctx, dloss, *_):
    dh, dw, factor = ctx.saved_tensors
    if dloss is None:
        return (None,) * 9
    if _keep_graph():  # another backward may come
        dh, dw = dh.clone(), dw.clone()
    SCALE(dh, dw, factor * dloss)
    return _loss_grads(ctx, dh, dw)


def _loss_grads(ctx, dh, dw):
    need_dh, need_dw = ctx.needs_input_grad[:2]
    return dh if need_dh else None, dw if need_dw else None, *(None,) * 7


def _logprob_fake(hidden, weight, targets):
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32)


def _logprob_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _logprob_backward(ctx, dlogprob):
    need_dh, need_dw = ctx.needs_input_grad[:2]
    dh, dw = LOGPROB_BACKWARD(dlogprob.contiguous(), *ctx.saved_tensors, need_dh, need_dw)
    return dh if need_dh else None, dw if need_dw else None, None


def _logprob_backward_fake(dlogprob, hidden, weight, targets, need_dh, need_dw):
    return _empty_like(hidden, need_dh), _empty_like(weight, need_dw)


LOSS = Boundary(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor labels, int ignore_index, bool mean, float z_loss, "
    "SymInt? supervised, bool need_dh, bool need_dw) -> (Tensor, Tensor, Tensor, Tensor)",
    "afn_kernels.linear_cross_entropy.triton:loss",
    _loss_fake,
    setup_context=_loss_context,
    backward=_loss_backward,
    eager_backward=_loss_backward_in_place,
)
SCALE = Boundary(
    "linear_cross_entropy_scale(Tensor(a!) dh, Tensor(b!) dw, Tensor factor) -> ()",
    "afn_kernels.linear_cross_entropy.triton:scale",
    lambda dh, dw, factor: None,
)
LOGPROB = Boundary(
    "linear_logprob(Tensor hidden, Tensor weight, Tensor targets) -> Tensor",
    "afn_kernels.linear_cross_entropy.triton:logprob",
    _logprob_fake,
    setup_context=_logprob_context,
    backward=_logprob_backward,
)
LOGPROB_BACKWARD = Boundary(
    "linear_logprob_backward(Tensor dlogprob, Tensor hidden, Tensor weight, Tensor targets, bool need_dh, bool need_dw)"
    " -> (Tensor, Tensor)",
    "afn_kernels.linear_cross_entropy.triton:logprob_backward",
    _logprob_backward_fake,
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
