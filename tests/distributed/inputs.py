"""Inputs of attention for the tests of this folder, and the check of what ranks make of them."""

from __future__ import annotations

import itertools
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


def check(cu, parts, *every) -> None:
    """The first of out, dq, dk, dv, in each of ``every``, are those of one process but for rounding.

    Ranks weigh a part by exp(lse of the part − lse of all), and the lse is rounded: that is up to a unit in the last
    place for each unit of its size, the same for a whole row of scores, which no order of summation shows. Gradients
    of scores are differences, dP − Δ: where a query sees few keys they cancel, and what was rounded is ``terms``.
    """
    first, *others = in_orders(lambda: one_process(cu, *parts))
    lse = ak.attention(*parts[:3], cu_seqlens_q=cu, causal=True, return_lse=True, impl="reference")[1]
    ulps = 2 + math.ceil(float(lse.abs().max()))
    rounded = [0.0, *[torch.finfo(parts[0].dtype).eps * x for x in terms(cu, *parts)], 0.0]
    for found in every:
        for number, part in enumerate(found):
            same = [one[number] for one in others]
            least = rounded[number] / max(float(first[number].abs().max()), 1e-30)
            name = ("out", "dq", "dk", "dv")[number]
            assert_within_budget(part, same, first[number], ulps=ulps, elsewhere=[least], name=name)


def terms(cu, q, k, v, dout) -> tuple[float, float]:
    """The largest scale · P · |dP · k| of a query and a key, and scale · P · |dP · q|: terms of dq and dk."""
    scale, group, most = q.shape[-1] ** -0.5, q.shape[1] // k.shape[1], [0.0, 0.0]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    for start, end in itertools.pairwise(cu.tolist()):
        if end > start:
            q_i, k_i, v_i, d_i = (x[start:end].transpose(0, 1) for x in (q, k, v, dout))
            ahead = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
            p = (scale * q_i @ k_i.mT).masked_fill(ahead, -torch.inf).softmax(-1)
            ds = scale * p * (d_i @ v_i.mT).abs()
            most[0] = max(most[0], float((ds * k_i.abs().amax(-1)[:, None, :]).max()))
            most[1] = max(most[1], float((ds * q_i.abs().amax(-1)[:, :, None]).max()))
    return most[0], most[1]
