"""The language-model head where its scores are read one by one: float32 from the product on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afn_kernels as ak

ROWS = 1024  # whose logits are in memory together in training: 0.6 GB at 151,672 classes
CLASSES = 4096  # whose weights are copied to float32 together where the device cannot return float32


class LanguageModelHead(nn.Linear):
    """Hidden states to logits; in the dtype of the weights, or ``wide``: in float32 from the product on."""

    def forward(self, input: Tensor, *, wide: bool = False) -> Tensor:
        return float32_logits(input, self.weight) if wide else super().forward(input)


def sampling_logits(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Logits [T, V] in float32, from the product on where the head can; its hooks see them either way.

    One with an adapter, which has ``operands``, can too.
    """
    wide = isinstance(head, LanguageModelHead) or hasattr(head, "operands")
    logits = head(hidden, wide=True) if wide else head(hidden)
    return logits.float()


def float32_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """logits = W h, summed and returned in float32 whatever the dtype of the factors.

    A logit of 20 rounded to bfloat16 is off by up to 0.06, and log-probabilities with it: a sampler that rounds draws
    from another distribution than the one that is trained.

    Args:
        hidden: [T, D], any floating dtype.
        weight: [V, D], same dtype, or float32 beside 16 bits.

    Returns:
        [T, V] float32, or float64 where the factors are; with gradients, which are rounded to the dtype of the factors.

    Source: MiniMax, 2025, arXiv:2506.13585, section 3.2: a float32 head closes the gap between sampling and training.
    """
    if hidden.element_size() > 2:
        return F.linear(hidden, weight)
    return _Float32Product.apply(hidden, weight.to(hidden.dtype))


class _Float32Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda or hidden.is_meta:
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        wide = hidden.float()
        return torch.cat([F.linear(wide, part.float()) for part in weight.split(CLASSES)], dim=1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        slope = upstream[0].to(hidden.dtype)
        need_hidden, need_weight = ctx.needs_input_grad
        return slope @ weight if need_hidden else None, slope.t() @ hidden if need_weight else None


def target_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(W h / temperature)[target]: the logits are divided, not the hidden states, which would be rounded.

    Args:
        hidden: [T, D].
        weight: [V, D], same dtype, or float32 beside 16 bits.
        targets: [T] int64.
        temperature: 1 has a kernel; other temperatures take the logits of 1,024 rows at a time, and once more for a
            gradient.

    Returns:
        [T] float32; with gradients.
    """
    if temperature == 1 and (hidden.is_cuda or hidden.element_size() > 2):  # elsewhere the op rounds 16-bit logits
        return ak.linear_logprob(hidden, weight, targets)

    return _TargetLogprobs.apply(hidden, weight, targets, temperature)


class _TargetLogprobs(torch.autograd.Function):
    """The logits of ``ROWS`` rows at a time, forward and backward; the weight's gradient is summed in float32 over all
    rows and rounded once: 32 parts that are each rounded to bfloat16 are 0.7 % off."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.temperature = temperature
        narrow, parts = weight.to(hidden.dtype), zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
        found = [F.cross_entropy(float32_logits(h, narrow) / temperature, t, reduction="none") for h, t in parts]
        return -torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        need_hidden, need_weight, *_ = ctx.needs_input_grad
        narrow, slopes = weight.to(hidden.dtype), []
        total = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if need_weight else None
        )
        for h, t, up in zip(hidden.split(ROWS), targets.split(ROWS), upstream[0].split(ROWS), strict=True):
            slope = (float32_logits(h, narrow) / ctx.temperature).softmax(-1).neg_()
            slope.scatter_add_(1, t[:, None], torch.ones_like(slope[:, :1]))
            slope = slope.mul_(up[:, None] / ctx.temperature).to(hidden.dtype)
            if need_hidden:
                slopes.append(slope @ narrow)
            if total is not None:
                for part, columns in zip(total.split(CLASSES), slope.split(CLASSES, 1), strict=True):
                    part += _wide_product(columns.t(), h)
        return (
            torch.cat(slopes) if need_hidden else None,
            None if total is None else total.to(weight.dtype),
            None,
            None,
        )


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a b, float32 from the sums on."""
    if a.element_size() <= 2 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b if a.element_size() > 2 else a.float() @ b.float()
