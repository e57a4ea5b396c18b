"""linear_cross_entropy and linear_logprob as torch.compile and autograd see their kernels.

The forward computes the gradients of the loss too, while it has the logits: one matrix product fewer than recomputing
them. They are for an upstream gradient of 1; the backward multiplies them by the actual one: in place in eager calls,
where nobody else holds them, while torch.compile decides for itself. Where each row has an upstream gradient of its
own (log-probabilities, and the loss of every row), the backward computes the logits again.
"""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows

# PyTorch names no public way to ask; where a release lacks this one, gradients are copied.
_keep_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _empty_like(x, needed):
    return x.new_empty(x.shape if needed else 0)


def _empty_bias(weight, needed):
    return weight.new_empty(weight.shape[0] if needed else 0, dtype=torch.float32)


def _loss_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, mean: bool,
    label_smoothing: float, softcap: float | None, z_loss: float, supervised: int | None, need_dh: bool, need_dw: bool,
    need_db: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss, factor = hidden.new_empty((), dtype=torch.float32), hidden.new_empty((), dtype=torch.float32)
    return loss, _empty_like(hidden, need_dh), _empty_like(weight, need_dw), _empty_bias(weight, need_db), factor


def _loss_context(ctx, inputs, output):
    _, dh, dw, db, factor = output
    ctx.bias_dtype = None if inputs[2] is None else inputs[2].dtype
    ctx.mark_non_differentiable(dh, dw, db, factor)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dh, dw, db, factor)


def _loss_backward(ctx, dloss, *_):
    dh, dw, db, factor = ctx.saved_tensors
    if dloss is None:
        return None
    factor = factor * dloss
    dh, dw = ((x.float() * factor).to(x.dtype) for x in (dh, dw))
    return dh, dw, None if ctx.bias_dtype is None else (db * factor).to(ctx.bias_dtype)


def _loss_backward_in_place(ctx, dloss, *_):
    dh, dw, db, factor = ctx.saved_tensors
    if dloss is None:
        return None
    if _keep_graph():  # another backward may come
        dh, dw, db = dh.clone(), dw.clone(), db.clone()
    SCALE(dh, dw, db, factor * dloss)
    return dh, dw, None if ctx.bias_dtype is None else db.to(ctx.bias_dtype)


def _scale_fake(dh: Tensor, dw: Tensor, db: Tensor, factor: Tensor) -> None:
    pass


def _logprob_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int | None,
    label_smoothing: float, softcap: float | None, z_loss: float, supervised: int | None,
) -> Tensor:  # fmt: skip
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32)


def _logprob_context(ctx, inputs, output):
    *tensors, ctx.options = *inputs[:4], inputs[4:]
    ctx.save_for_backward(*tensors)


def _logprob_backward(ctx, dlogprob):
    bias, needed = ctx.saved_tensors[2], ctx.needs_input_grad[:3]
    dh, dw, db = LOGPROB_BACKWARD(dlogprob.contiguous(), *ctx.saved_tensors, *ctx.options, *needed)
    return dh, dw, None if bias is None else db.to(bias.dtype)


def _logprob_backward_fake(
    dlogprob: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int | None,
    label_smoothing: float, softcap: float | None, z_loss: float, supervised: int | None, need_dh: bool, need_dw: bool,
    need_db: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_like(hidden, need_dh), _empty_like(weight, need_dw), _empty_bias(weight, need_db)


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
    writes=("dh", "dw", "db"),
)
LOGPROB = Boundary(
    "linear_logprob",
    "afn_kernels.linear_cross_entropy.triton:logprob",
    _logprob_fake,
    setup_context=_logprob_context,
    backward=_logprob_backward,
)
LOGPROB_BACKWARD = Boundary(
    "linear_logprob_backward", "afn_kernels.linear_cross_entropy.triton:logprob_backward", _logprob_backward_fake
)


def linear_cross_entropy(
    hidden, weight, labels, *, bias, ignore_index, reduction, label_smoothing, softcap, z_loss, supervised
):
    """The "triton" row of the op's table."""
    tensors = as_rows(hidden), as_rows(weight), None if bias is None else bias.contiguous(), labels.contiguous()
    options = label_smoothing, softcap, z_loss, supervised
    if reduction == "none":
        return -LOGPROB(*tensors, ignore_index, *options)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    return LOSS(*tensors, ignore_index, reduction == "mean", *options, *wanted)[0]


def linear_logprob(hidden, weight, targets, *, bias, softcap):
    """The "triton" row of the op's table."""
    bias = None if bias is None else bias.contiguous()
    return LOGPROB(as_rows(hidden), as_rows(weight), bias, targets.contiguous(), None, 0.0, softcap, 0.0, None)
