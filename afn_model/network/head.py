"""The language-model head where its scores are read one by one: float32 from the product on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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

    def some(hidden: Tensor, targets: Tensor) -> Tensor:
        scores = float32_logits(hidden, weight) / temperature
        return -F.cross_entropy(scores, targets, reduction="none")

    parts = zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
    found: list[Any] = [checkpoint(some, *part, use_reentrant=False) for part in parts]
    return torch.cat(found)
