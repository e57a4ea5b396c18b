"""Linear layers that multiply in FP8 while they train: blocks of 128 that share a scale, sums in float32.

y = x Wᵀ + b with x in blocks of (1, 128) and W in blocks of (128, 128); dx = dy W with dy in blocks of (1, 128);
dW = dyᵀ x with both in blocks of (1, 128) along the tokens. Weights, gradients and what is kept for the backward have
the dtypes that they have without.

Source: DeepSeek-V3, 2024, arXiv:2412.19437, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afn_kernels as ak

ALIGNED = 16  # widths are multiples of it: kernels read whole 16 bytes
BLOCK = 128
LINE, SQUARE = (1, BLOCK), (BLOCK, BLOCK)


class FP8TrainingLinear(nn.Linear):
    """``nn.Linear`` whose three products are in FP8."""

    fp8 = True

    @classmethod
    def of(cls, layer: nn.Linear) -> FP8TrainingLinear:
        """A layer with the parameters of another."""
        found = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        found.weight, found.bias = layer.weight, layer.bias
        return found.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return fp8_products(x, [self.weight], [self.bias])[0]

    def product(self, x: Tensor) -> Tensor:
        """W x without the bias."""
        return fp8_products(x, [self.weight], [None])[0]


def fp8_products(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """x Wᵀ + b of several W and b, in the dtype of x, which is quantised once.

    Args:
        x: [T, in].
        weights: [out, in] each, or ``afn_distributed.fp8_gather.FP8Weight``.
        biases: [out] or None for each.
    """
    return _Products.apply(x, *weights, *biases)


class _Products(torch.autograd.Function):
    """Keeps x for the gradients of the weights, and the weights for that of x: what is not wanted is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        wants_x, *wants = ctx.needs_input_grad
        ctx.save_for_backward(x if any(wants[:count]) else None, *(weights if wants_x else ()))
        ctx.dtypes = x.dtype, [weight.dtype for weight in weights], [b is not None and b.dtype for b in biases]
        codes, scale = ak.quantize_fp8(x, block=LINE)
        found = []
        for weight, bias in zip(weights, biases, strict=True):
            w, w_scale = coded(weight)
            found.append(ak.linear_fp8(codes, w, scale, w_scale, bias, out_dtype=x.dtype))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, *weights), (dtype, *dtypes) = ctx.saved_tensors, ctx.dtypes
        count = len(gradients)
        dx = None
        for number, weight in enumerate(weights):
            codes, scale = ak.quantize_fp8(gradients[number], block=LINE)
            w, w_scale = coded(weight, transpose=True)
            kind = dtype if number + 1 == count else torch.float32  # the sum over the layers, until the last
            dx = ak.linear_fp8(codes, w, scale, w_scale, residual=dx, out_dtype=kind)
        wants, found = ctx.needs_input_grad[1:], [dx]
        columns = None if x is None else along_tokens(x)
        for dy, wanted, kind in zip(gradients, wants[:count], dtypes[0], strict=True):
            if not wanted or columns is None:
                found.append(None)
                continue
            (codes, scale), (x_codes, x_scale) = along_tokens(dy), columns
            found.append(ak.linear_fp8(codes, x_codes, scale, x_scale, out_dtype=kind))
        for dy, wanted, kind in zip(gradients, wants[count:], dtypes[1], strict=True):
            found.append(dy.sum(0, dtype=torch.float32).to(kind) if wanted else None)
        return tuple(found)


def coded(weight: Tensor, *, transpose: bool = False) -> tuple[Tensor, Tensor]:
    """W, or its transpose, in e4m3 with a scale for each (128, 128); what was gathered in FP8 is so already."""
    given = getattr(weight, "coded", None)
    if given is None:
        return ak.quantize_fp8(weight.detach(), block=SQUARE, transpose=transpose)
    return given(transpose)


def along_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """xᵀ [columns, T] in e4m3 with a scale for each 128 tokens of a column, and zeros up to whole blocks of tokens."""
    codes, scale = ak.quantize_fp8(x, block=LINE, transpose=True)
    more = -len(x) % BLOCK
    if more:
        codes = F.pad(codes.view(torch.uint8), (0, more)).view(codes.dtype)
    return codes, scale
