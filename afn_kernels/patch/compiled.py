"""Attention with a mask in a graph of torch.compile: ops that look into the mask when the graph runs.

``LOOK`` finds out how a batch is packed and returns the number under which that is kept, for ``ATTEND``. All layers
have one mask, so a graph keeps one ``LOOK``, and a GPU is waited for once.
"""

import itertools

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels.patch.packed_batch import PackedBatch

_NUMBERS = itertools.count()
_FOUND: dict[int, PackedBatch | None] = {}
MOST = 256  # batches whose packing is kept: graphs that have run forward and not yet backward


def look(mask: Tensor, batch: int, causal: bool) -> Tensor:
    number = next(_NUMBERS)
    _FOUND[number] = PackedBatch.look(mask, batch, causal)
    if len(_FOUND) > MOST:
        del _FOUND[min(_FOUND)]
    return torch.tensor([number])


def _layout(number: Tensor, mask: Tensor, batch: int, causal: bool) -> PackedBatch | None:
    there = int(number)
    return _FOUND[there] if there in _FOUND else PackedBatch.look(mask, batch, causal)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, number: Tensor, causal: bool, scale: float, impl: str
) -> tuple[Tensor, Tensor]:
    layout = _layout(number, mask, len(q), causal)
    if layout is not None:
        try:
            return layout.run_with_lse(q, k, v, scale, impl)
        except ValueError:
            pass  # dtypes or heads that the implementation does not take
    return _dense(q, k, v, mask, scale)


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    number: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    layout = _layout(number, mask, len(q), causal)
    grads = None if layout is None else layout.backward(dout, q, k, v, out, lse, scale, impl)
    grads = _dense_backward(dout, q, k, v, mask, out, lse, scale) if grads is None else grads
    return tuple(torch.empty_like(x).copy_(grad) for x, grad in zip((q, k, v), grads, strict=True))


def _scores(q, k, mask, scale):
    """[B, H, S, S] in float32 or better; -inf where the mask hides a key."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ _repeated(k, q).to(wide).mT * scale
    return scores.masked_fill(~mask, float("-inf"))


def _repeated(x, q):
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _dense(q, k, v, mask, scale):
    scores = _scores(q, k, mask, scale)
    lse = scores.logsumexp(-1)
    out = _weights(scores, lse) @ _repeated(v, q).to(scores.dtype)
    return out.to(q.dtype).transpose(1, 2).contiguous(), lse.float().transpose(1, 2).contiguous()


def _weights(scores, lse):
    return torch.where(scores == float("-inf"), 0.0, (scores - lse[..., None]).exp())


def _dense_backward(dout, q, k, v, mask, out, lse, scale):
    scores = _scores(q, k, mask, scale)
    weights = _weights(scores, scores.logsumexp(-1))
    dout, out = (x.transpose(1, 2).to(scores.dtype) for x in (dout, out))
    inner = weights * (dout @ _repeated(v, q).to(scores.dtype).mT - (dout * out).sum(-1, keepdim=True)) * scale
    dq = inner @ _repeated(k, q).to(scores.dtype)
    dk, dv = inner.mT @ q.to(scores.dtype), weights.mT @ dout
    return dq, *(x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))


def _look_fake(mask: Tensor, batch: int, causal: bool) -> Tensor:
    return torch.empty(1, dtype=torch.int64, device="cpu")


def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, number: Tensor, causal: bool, scale: float, impl: str
) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = q.shape
    return q.new_empty(batch, length, heads, width), q.new_empty(batch, length, heads, dtype=torch.float32)


def _backward_fake(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    number: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup(ctx, inputs, output):
    *tensors, ctx.causal, ctx.scale, ctx.impl = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, dout, dlse):
    return BACKWARD(dout, *ctx.saved_tensors, ctx.causal, ctx.scale, ctx.impl)


LOOK = Boundary("patch_look", "afn_kernels.patch.compiled:look", _look_fake)
BACKWARD = Boundary("patch_attend_backward", "afn_kernels.patch.compiled:backward", _backward_fake)
ATTEND = Boundary(
    "patch_attend", "afn_kernels.patch.compiled:attend", _attend_fake, setup_context=_setup, backward=_backward
)
