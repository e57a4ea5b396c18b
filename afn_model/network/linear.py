"""Linear layers: by the faster of PyTorch's two libraries in generation on a CPU, and their products alone.

An adapter beside a weight must not be lost where a kernel goes on from the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_kernels import cpu
from afn_model.network.fp8_linear import fp8_products

# Products of a call, from which on oneDNN is 1.2 to 2.2 times as fast (AVX-512 cores of an AMD EPYC 9005).
ONEDNN_PRODUCTS = 1 << 21


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), [..., in] to [..., out]."""
    found = _onednn(layer, x, True)
    return layer(x) if found is None else found


def linears(layers: Sequence[Any], x: Tensor) -> list[Tensor]:
    """[layer(x) for layer in layers]; layers that multiply in FP8 share one quantised x."""
    if not all(getattr(layer, "fp8", False) for layer in layers):
        return [linear(layer, x) for layer in layers]
    found = fp8_products(x, [layer.weight for layer in layers], [layer.bias for layer in layers])
    adapted = (getattr(layer, "adapted", None) for layer in layers)
    return [y if adapt is None else adapt(x, y) for adapt, y in zip(adapted, found, strict=True)]


def product(layer: nn.Linear, x: Tensor) -> Tensor:
    """W x without the bias, [..., in] to [..., out], with the layer's adapter where it has one."""
    own = getattr(layer, "product", None)
    if own is not None:
        return own(x)
    found = _onednn(layer, x, False)
    return F.linear(x, layer.weight) if found is None else found


def operands(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """(x', W') with x' W'ᵀ = ``product(layer, x)``, for kernels that read the weight themselves."""
    own = getattr(layer, "operands", None)
    return (x, layer.weight) if own is None else own(x)


def _onednn(layer: nn.Module, x: Tensor, with_bias: bool) -> Tensor | None:
    """By oneDNN; None where that is not sure to be the same and faster.

    On AMD's CPUs the library that PyTorch multiplies float32 matrices by uses no AVX-512, and takes twice as long.
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return None
    if not x.is_cpu or x.dtype != torch.float32:
        return None
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or layer.weight.dtype != x.dtype:
        return None
    if type(x) is not Tensor or x.dim() != 2 or len(x) * layer.weight.numel() < ONEDNN_PRODUCTS:
        return None
    if layer._forward_hooks or layer._forward_pre_hooks:
        return None
    if cpu.steered() or not _onednn_is_faster():
        return None
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias if with_bias else None, "none", [], "")


@lru_cache
def _onednn_is_faster() -> bool:
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512"
