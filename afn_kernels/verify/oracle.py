"""Attention and the losses of a language-model head in blocks: exact enough to judge by, small enough for real shapes.

Both compute in the dtype of their inputs: in float64 they are what kernels are compared with. Neither makes a matrix of
queries by keys or of rows by classes: attention goes through each KV head's query heads a block of queries at a time,
the losses through a block of classes at a time, forward and backward. With ``rounded`` attention rounds what
PyTorch's fused attention rounds, in plain PyTorch: a measure of what a precision loses at a length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from afn_kernels.attention.reference import merge
from afn_kernels.attention.window import UNLIMITED, Window, limits

SCORES = 2**24  # of a block of attention: 134 MB in float64
LOGITS = 2**25  # of a block of classes: 268 MB in float64


@dataclass(frozen=True)
class AttentionSpec:
    """What a call of ``blockwise_attention`` says besides q, k and v."""

    bounds_q: tuple[int, ...]
    bounds_k: tuple[int, ...]
    causal: bool
    window: Window | None
    softcap: float
    scale: float
    rounded: torch.dtype | None
    seed: int | None


@dataclass(frozen=True)
class ScoreBlock:
    """Queries ``rows`` of all query heads of KV head ``head``, the keys that any of them sees, and which they do."""

    rows: slice
    queries: slice
    head: int
    keys: Tensor
    hidden: Tensor | None


def blockwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    causal: bool = False,
    window: Window | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    carry: tuple[Tensor, Tensor] | None = None,
    rounded: torch.dtype | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) as ``afn_kernels.attention`` defines them, differentiable, in the dtype of q.

    Args:
        q, k, v, cu_seqlens_q, cu_seqlens_k, causal, window, softcap, scale, carry: as ``afn_kernels.attention``.
        rounded: 16-bit dtype to which weights, outputs and gradients of scores are rounded where fused kernels do it.
        seed: of another order of the keys, for sums in another order; None keeps theirs.
    """
    bounds_q = (0, len(q)) if cu_seqlens_q is None else tuple(cu_seqlens_q.tolist())
    bounds_k = (0, len(k)) if cu_seqlens_k is None and cu_seqlens_q is None else bounds_q
    bounds_k = bounds_k if cu_seqlens_k is None else tuple(cu_seqlens_k.tolist())
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    spec = AttentionSpec(bounds_q, bounds_k, causal, window, softcap, scale, rounded, seed)
    out, lse = BlockwiseAttention.apply(q, k, v, spec)
    return (out, lse) if carry is None else merge((out, lse), carry)


class BlockwiseAttention(torch.autograd.Function):
    """(out, lse) of q, k and v; the backward computes the weights again from lse."""

    @staticmethod
    def forward(ctx, q, k, v, spec):
        out = q.new_zeros(q.shape)
        lse = q.new_full(q.shape[:2], -torch.inf)
        for block in _blocks(q, k, spec):
            score = _scores(q, k, block, spec)
            top = score.amax(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).min)
            weight = (score - top).exp()
            total = weight.sum(-1, keepdim=True)
            found = _round(weight, spec) @ v[block.keys, block.head]
            out[block.rows, block.queries] = torch.where(total > 0, found / total, 0.0).transpose(0, 1)
            lse[block.rows, block.queries] = (top + total.log())[..., 0].T
        out = _round(out, spec)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.spec = spec
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        q, k, v, out, lse = ctx.saved_tensors
        spec = ctx.spec
        delta = (dout * out).sum(-1) - dlse
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for block in _blocks(q, k, spec):
            score = _scores(q, k, block, spec)
            own = lse[block.rows, block.queries].T[..., None]
            weight = (score - own.masked_fill(own == -torch.inf, 0.0)).exp()
            dout_GRD = dout[block.rows, block.queries].transpose(0, 1)
            dweight = dout_GRD @ v[block.keys, block.head].T
            dscore = weight * (dweight - delta[block.rows, block.queries].T[..., None])
            if spec.softcap:
                dscore = dscore * (1 - (score.masked_fill(score == -torch.inf, 0.0) / spec.softcap).square())
            dscore = _round(dscore, spec)
            rows = q[block.rows, block.queries].transpose(0, 1)
            dq[block.rows, block.queries] = (dscore @ k[block.keys, block.head] * spec.scale).transpose(0, 1)
            _add(dk, block, dscore.flatten(0, 1).T @ rows.flatten(0, 1) * spec.scale)
            _add(dv, block, _round(weight, spec).flatten(0, 1).T @ dout_GRD.flatten(0, 1))
        return dq, dk, dv, None


def _add(total: Tensor, block: ScoreBlock, part: Tensor) -> None:
    """Keys of a block are distinct, so that an indexed sum has one order."""
    total[block.keys, block.head] = total[block.keys, block.head] + part


def _round(x: Tensor, spec: AttentionSpec) -> Tensor:
    return x if spec.rounded is None else x.to(spec.rounded).to(x.dtype)


def _blocks(q: Tensor, k: Tensor, spec: AttentionSpec) -> Iterator[ScoreBlock]:
    group = q.shape[1] // k.shape[1]
    sequences = zip(itertools.pairwise(spec.bounds_q), itertools.pairwise(spec.bounds_k), strict=True)
    for (q0, q1), (k0, k1) in sequences:
        queries, keys = q1 - q0, k1 - k0
        step = max(16, SCORES // max(1, group * keys))
        for begin in range(0, queries, step):
            end = min(begin + step, queries)
            index, hidden = _keys_of(begin, end, queries, keys, spec, q.device)
            if not len(index):
                continue
            for head in range(k.shape[1]):
                heads = slice(head * group, (head + 1) * group)
                yield ScoreBlock(slice(q0 + begin, q0 + end), heads, head, index + k0, hidden)


def _keys_of(
    begin: int, end: int, queries: int, keys: int, spec: AttentionSpec, device
) -> tuple[Tensor, Tensor | None]:
    """The keys that queries ``begin`` to ``end`` of a sequence see, and which of them do not see which."""
    left, right = limits(spec.causal, spec.window) or (UNLIMITED, UNLIMITED)
    shift = keys - queries
    first, last = max(0, begin + shift - left), min(keys, end + shift + right)
    index = torch.arange(first, max(first, last), device=device)
    if spec.seed is not None:
        order = torch.randperm(len(index), generator=torch.Generator().manual_seed(spec.seed))
        index = index[order.to(device)]
    if (left, right) == (UNLIMITED, UNLIMITED):
        return index, None
    own = torch.arange(begin, end, device=device)[:, None] + shift
    return index, (index < own - left) | (index > own + right)


def _scores(q: Tensor, k: Tensor, block: ScoreBlock, spec: AttentionSpec) -> Tensor:
    """[query heads of the KV head, queries, keys]."""
    score = q[block.rows, block.queries].transpose(0, 1) @ k[block.keys, block.head].T * spec.scale
    if spec.softcap:
        score = spec.softcap * (score / spec.softcap).tanh()
    return score if block.hidden is None else score.masked_fill(block.hidden, -torch.inf)


def blockwise_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    supervised: int | None = None,
) -> Tensor:
    """As ``afn_kernels.linear_cross_entropy``, in the dtype of ``hidden``, a block of classes at a time."""
    kept = (labels != ignore_index).nonzero().squeeze(1)
    lse, at_label, total = BlockwiseLogits.apply(hidden[kept], weight, labels[kept], bias, softcap)
    loss = lse - (1 - label_smoothing) * at_label - label_smoothing / len(weight) * total + z_loss * lse.square()
    if reduction == "none":
        return loss.new_zeros(len(labels)).index_copy(0, kept, loss)
    return loss.sum() / max(1, len(kept)) if reduction == "mean" else loss.sum()


def blockwise_linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """As ``afn_kernels.linear_logprob``, in the dtype of ``hidden``, a block of classes at a time."""
    lse, at_target, _ = BlockwiseLogits.apply(hidden, weight, targets, bias, softcap)
    return at_target - lse


class BlockwiseLogits(torch.autograd.Function):
    """(logsumexp, logit of the label, sum) of each row's logits; the backward makes every block of them again."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, bias, softcap):
        lse = hidden.new_full((len(hidden),), -torch.inf)
        at_label, total = (torch.zeros_like(lse) for _ in range(2))
        for classes in _classes(hidden, weight):
            x, _ = _logits(hidden, weight, bias, softcap, classes)
            lse = torch.logaddexp(lse, x.logsumexp(-1))
            total = total + x.sum(-1)
            inside = (labels >= classes.start) & (labels < classes.stop)
            column = (labels - classes.start).clamp(0, x.shape[1] - 1)[:, None]
            at_label = torch.where(inside, x.gather(1, column)[:, 0], at_label)
        ctx.save_for_backward(hidden, weight, labels, bias, lse)
        ctx.softcap = softcap
        return lse, at_label, total

    @staticmethod
    def backward(ctx, dlse, dlabel, dtotal):
        hidden, weight, labels, bias, lse = ctx.saved_tensors
        dhidden, dweight = torch.zeros_like(hidden), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        dbias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        rows = torch.arange(len(hidden), device=hidden.device)
        for classes in _classes(hidden, weight):
            x, slope = _logits(hidden, weight, bias, ctx.softcap, classes)
            dx = (x - lse[:, None]).exp() * dlse[:, None] + dtotal[:, None]
            inside = ((labels >= classes.start) & (labels < classes.stop)).nonzero().squeeze(1)
            dx[rows[inside], labels[inside] - classes.start] += dlabel[inside]
            dx = dx if slope is None else dx * slope
            dhidden += dx @ weight[classes]
            if dweight is not None:
                dweight[classes] = dx.T @ hidden
            if dbias is not None:
                dbias[classes] = dx.sum(0)
        return dhidden, dweight, None, dbias, None


def _classes(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    step = max(256, LOGITS // max(1, len(hidden)))
    for begin in range(0, len(weight), step):
        yield slice(begin, min(begin + step, len(weight)))


def _logits(hidden, weight, bias, softcap, classes: slice) -> tuple[Tensor, Tensor | None]:
    """A block of logits, and the derivative of the cap where there is one."""
    x = hidden @ weight[classes].T
    x = x if bias is None else x + bias[classes]
    if softcap is None:
        return x, None
    inner = (x / softcap).tanh()
    return softcap * inner, 1 - inner.square()
