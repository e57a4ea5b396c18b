"""Plain PyTorch in other orders of summation: what an error budget is drawn from."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
aten = torch.ops.aten


def in_orders(call: Callable[[], T], count: int = 8) -> list[T]:
    """What ``call`` gives as it is, and in ``count`` other orders of summation, forward and backward."""
    found = [call()]
    for seed in range(count):
        # PyTorch's fused attention and attention by matrix products take turns: their exponentials differ too.
        with OtherOrder(seed), sdpa_kernel(SDPBackend.MATH) if seed % 2 else nullcontext():
            found.append(call())
    return found


class OtherOrder(TorchDispatchMode):
    """Everything that is summed while it is entered is put into a random order first: the same sums, other roundings.

    Args:
        seed: of the orders.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shuffled = SHUFFLED.get(func.overloadpacket)
        return shuffled(self, func, *args, **(kwargs or {})) if shuffled else func(*args, **(kwargs or {}))

    def order(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator)


def take(x: Tensor, dim: int, order: Tensor) -> Tensor:
    return x.index_select(dim, order.to(x.device))


def _product(mode, func, a, b, **rest):
    order = mode.order(a.shape[-1])
    return func(take(a, -1, order), take(b, 0 if b.dim() == 1 else -2, order), **rest)


def _product_and_sum(mode, func, c, a, b, **rest):
    order = mode.order(a.shape[-1])
    return func(c, take(a, -1, order), take(b, 0 if b.dim() == 1 else -2, order), **rest)


def _sum(mode, func, x, dim=None, *rest, **options):
    dims = range(x.dim()) if not dim and dim != 0 else [dim] if isinstance(dim, int) else dim
    for one in dims:
        if x.dim():
            x = take(x, one, mode.order(x.shape[one]))
    return func(x, *rest, **options) if dim is None else func(x, dim, *rest, **options)


def _softmax(mode, func, x, dim, *rest):
    if not x.dim():
        return func(x, dim, *rest)
    order = mode.order(x.shape[dim])
    return take(func(take(x, dim, order), dim, *rest), dim, order.argsort())


def _softmax_backward(mode, func, grad, out, dim, *rest):
    if not grad.dim():
        return func(grad, out, dim, *rest)
    order = mode.order(grad.shape[dim])
    return take(func(take(grad, dim, order), take(out, dim, order), dim, *rest), dim, order.argsort())


def _layer_norm(mode, func, x, shape, weight, bias, eps):
    order = mode.order(shape[-1])
    weight, bias = (None if w is None else take(w, -1, order) for w in (weight, bias))
    y, mean, rstd = func(take(x, -1, order), shape, weight, bias, eps)
    return take(y, -1, order.argsort()), mean, rstd


def _layer_norm_backward(mode, func, grad, x, shape, mean, rstd, weight, bias, mask):
    columns = mode.order(shape[-1])
    grad, x, weight, bias = (None if t is None else take(t, -1, columns) for t in (grad, x, weight, bias))
    rows = mode.order(x.shape[0]) if x.dim() > len(shape) else None
    if rows is not None:
        grad, x, mean, rstd = (take(t, 0, rows) for t in (grad, x, mean, rstd))
    dx, *sums = func(grad, x, shape, mean, rstd, weight, bias, mask)
    if rows is not None and dx is not None:
        dx = take(dx, 0, rows.argsort())
    return tuple(None if t is None else take(t, -1, columns.argsort()) for t in (dx, *sums))


def _convolution(mode, func, x, weight, *rest):
    if rest[-1] != 1:  # groups
        return func(x, weight, *rest)
    order = mode.order(x.shape[1])
    return func(take(x, 1, order), take(weight, 1, order), *rest)


def _convolution_backward(mode, func, grad, x, weight, *rest):
    if rest[-2] != 1:  # groups
        return func(grad, x, weight, *rest)
    row, out, into = (mode.order(n) for n in (len(x), *weight.shape[:2]))
    grad, x = take(take(grad, 0, row), 1, out), take(take(x, 0, row), 1, into)
    dx, dweight, dbias = func(grad, x, take(take(weight, 0, out), 1, into), *rest)
    row, out, into = (order.argsort() for order in (row, out, into))
    return (
        None if dx is None else take(take(dx, 0, row), 1, into),
        None if dweight is None else take(take(dweight, 0, out), 1, into),
        None if dbias is None else take(dbias, 0, out),
    )


def _attention(mode, func, q, k, v, dropout=0.0, causal=False, *, attn_mask=None, scale=None):
    width, out_width, keys = mode.order(q.shape[-1]), mode.order(v.shape[-1]), mode.order(k.shape[-2])
    if not causal:
        k, v = take(k, -2, keys), take(v, -2, keys)
        attn_mask = None if attn_mask is None else take(attn_mask, -1, keys)
    q, k, v = take(q, -1, width), take(k, -1, width), take(v, -1, out_width)
    out, lse = func(q, k, v, dropout, causal, attn_mask=attn_mask, scale=scale)
    return take(out, -1, out_width.argsort()), lse


def _attention_backward(mode, func, dout, q, k, v, out, lse, dropout, causal, *, attn_mask=None, scale=None):
    width, out_width = (mode.order(x.shape[-1]) for x in (q, v))
    rows, keys = (torch.arange(x.shape[-2]) if causal else mode.order(x.shape[-2]) for x in (q, k))
    q, k = (take(take(x, -1, width), -2, order) for x, order in ((q, rows), (k, keys)))
    dout, out, v = (take(take(x, -1, out_width), -2, order) for x, order in ((dout, rows), (out, rows), (v, keys)))
    if attn_mask is not None and not causal:
        attn_mask = take(attn_mask, -1, keys)
        attn_mask = take(attn_mask, -2, rows) if attn_mask.shape[-2] > 1 else attn_mask
    lse = take(lse, -1, rows)
    dq, dk, dv = func(dout, q, k, v, out, lse, dropout, causal, attn_mask=attn_mask, scale=scale)
    rows, keys, width, out_width = (order.argsort() for order in (rows, keys, width, out_width))
    both = ((dq, rows, width), (dk, keys, width), (dv, keys, out_width))
    return tuple(take(take(x, -2, order), -1, columns) for x, order, columns in both)


def _rows_of_embeddings(mode, func, grad, indices, *rest):
    order = mode.order(indices.numel())
    return func(take(grad.flatten(0, -2), 0, order), take(indices.flatten(), 0, order), *rest)


def _mean_of_losses(mode, func, logprob, target, weight, reduction, ignored):
    if logprob.dim() != 2 or not reduction:
        return func(logprob, target, weight, reduction, ignored)
    order = mode.order(len(logprob))
    return func(take(logprob, 0, order), take(target, 0, order), weight, reduction, ignored)


SHUFFLED = {
    **dict.fromkeys((aten.mm, aten.bmm, aten.mv, aten.dot), _product),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addmv, aten.addmm_, aten.baddbmm_), _product_and_sum),
    **dict.fromkeys((aten.sum, aten.mean, aten.logsumexp), _sum),
    **dict.fromkeys((aten._softmax, aten._log_softmax), _softmax),
    **dict.fromkeys((aten._softmax_backward_data, aten._log_softmax_backward_data), _softmax_backward),
    aten.native_layer_norm: _layer_norm,
    aten.native_layer_norm_backward: _layer_norm_backward,
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.embedding_dense_backward: _rows_of_embeddings,
    aten.nll_loss_forward: _mean_of_losses,
}
