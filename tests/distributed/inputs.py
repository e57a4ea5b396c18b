"""Inputs of attention for the tests of this folder, and the check of what ranks make of them."""

from __future__ import annotations

import torch

from bench.sequence_parallel import one_process
from tests.budget import assert_same_but_rounding, fresh
from tests.orders import in_orders


def qkv(total: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64, dim: int = 8) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, [total, heads, dim], of torch's seed."""
    generator = fresh()
    sizes = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(total, h, dim, generator=generator, dtype=torch.float64).to(dtype) for h in sizes]


def check(found, cu, parts, tokens=slice(None)) -> None:
    """The first of out, dq, dk, dv, at some tokens, are those of one process but for rounding, as large as over all."""
    expected = [one[: len(found)] for one in in_orders(lambda: one_process(cu, *parts))]
    whole = [x.clone() for x in expected[0]]
    for x, part in zip(whole, found, strict=True):
        x[tokens] = part
    assert_same_but_rounding(whole, expected)
