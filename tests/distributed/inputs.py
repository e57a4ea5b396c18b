"""Inputs of attention for the tests of this folder."""

from __future__ import annotations

import torch


def qkv(total: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64, dim: int = 8) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, [total, heads, dim], the same on every rank."""
    generator = torch.Generator().manual_seed(total)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(total, h, dim, generator=generator, dtype=torch.float64).to(dtype) for h in sizes]
