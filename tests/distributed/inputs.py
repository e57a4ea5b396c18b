"""Inputs of attention for the tests of this folder, and the check of what ranks make of them."""

from __future__ import annotations

import math

import torch

import afn_kernels as ak
from bench.sequence_parallel import one_process
from tests.budget import assert_within_budget, fresh
from tests.orders import in_orders


def qkv(total: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64, dim: int = 8) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, [total, heads, dim], of torch's seed."""
    generator = fresh()
    sizes = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(total, h, dim, generator=generator, dtype=torch.float64).to(dtype) for h in sizes]


def check(found, cu, parts, tokens=slice(None)) -> None:
    """The first of out, dq, dk, dv, at some tokens, are those of one process but for rounding, as large as over all.

    Ranks weigh a part by exp(lse of the part − lse of all), and the lse is rounded: that is up to a unit in the last
    place for each unit of its size, the same for a whole row of scores, which no order of summation shows.
    """
    first, *others = in_orders(lambda: one_process(cu, *parts))
    lse = ak.attention(*parts[:3], cu_seqlens_q=cu, causal=True, return_lse=True, impl="reference")[1]
    ulps = 2 + math.ceil(float(lse.abs().max()))
    for number, part in enumerate(found):
        whole = first[number].clone()
        whole[tokens] = part
        same = [one[number] for one in others]
        assert_within_budget(whole, same, first[number], ulps=ulps, name=("out", "dq", "dk", "dv")[number])
