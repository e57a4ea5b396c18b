"""Small calls of the CUDA kernels that order memory: each barrier, wait and arrival has something to order in one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch

import afn_kernels as ak
from afn_kernels import _triton
from afn_kernels.attention import cuda_backward
from afn_kernels.decode_attention import cuda as decode
from tests.kernels.cases.decode_attention import inputs
from tests.kernels.cases.paged_attention import inputs as paged_inputs


def log_mel(dtype: torch.dtype, rows: int, samples: int, programs: int, first: int = 0) -> torch.Tensor:
    """Loud and quiet tiles in each row, so that some are clamped; blocks have several tiles each."""
    pcm = torch.randn(rows, first + samples, generator=torch.Generator().manual_seed(0)) * 1e-4
    pcm[:, samples // 2 : samples // 2 + 700] = 0.5 * torch.sin(torch.arange(700.0))
    pcm[-1, samples // 4 : samples // 4 + 100] += 1e-3
    if not dtype.is_floating_point:
        pcm = (pcm * 32767).to(dtype)
    with patch.object(_triton, "programs", lambda device: programs):
        return ak.log_mel(pcm[:, first:], impl="cuda")


def attention(dtype: torch.dtype, capacity: int, programs: int, fp8: bool = False, **shape) -> torch.Tensor:
    i = inputs(torch.Generator().manual_seed(0), capacity, width=128, **shape)
    i = {name: x.to(dtype) if x.is_floating_point() else x for name, x in i.items()}
    if fp8:
        i |= {name: i[name].to(torch.float8_e4m3fn) for name in ("k_cache", "v_cache")}
    with patch.object(_triton, "programs", lambda device: programs), patch.object(decode, "least_tiles", lambda *_: 0):
        return ak.decode_attention(**i, impl="cuda")


def packed(dtype: torch.dtype, width: int, queries: tuple[int, ...], keys: tuple[int, ...], causal: bool):
    """Tiles one after another on a single block; keys of one sequence behind another's end."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(n), 1, width, generator=g).to(dtype) for n in (queries, keys, keys))
    bounds = [torch.tensor([0, *itertools.accumulate(n)], dtype=torch.int32) for n in (queries, keys)]
    with patch.object(_triton, "programs", lambda device: 1):
        return ak.attention(q, k, v, cu_seqlens_q=bounds[0], cu_seqlens_k=bounds[1], causal=causal, impl="cuda")


def backward(dtype: torch.dtype, width: int, queries: int, keys: int) -> torch.Tensor:
    """Two heads over one of keys, causal: several steps of several blocks of keys, with ragged ends."""
    g = torch.Generator().manual_seed(0)
    q, dout = (torch.randn(queries, 2, width, generator=g).to(dtype) for _ in range(2))
    k, v = (torch.randn(keys, 1, width, generator=g).to(dtype) for _ in range(2))
    out, lse = ak.attention(q, k, v, causal=True, return_lse=True, impl="reference")
    carry, tables, options = (None, None), (None, None), (True, -1, -1, 0.0, width**-0.5)
    needs = (True, True, False)
    grads = cuda_backward.backward(dout, None, q, k, v, out, lse, *carry, *tables, *options, *needs)
    return torch.cat([x.flatten() for x in grads[:3]])


def paged(page: int) -> torch.Tensor:
    """Pages and the last rows of one that nobody has are NaN."""
    i = paged_inputs(torch.Generator().manual_seed(0), [3, 130], [40, 130], heads=(1, 1), width=64, page=page)
    i = {name: x.half() if x.is_floating_point() else x for name, x in i.items()}
    with patch.object(_triton, "programs", lambda device: 1):
        return ak.paged_attention(**i, impl="cuda")


def heads() -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, 128, generator=g).half() for n in (6, 2, 2))
    rotation = {"positions": torch.arange(3.0), "inv_freq": torch.rand(64, generator=g)}
    return ak.pack_heads(q, k, v, ((0, 3, 0, 2), (3, 6, 0, 2)), **rotation, impl="cuda")


def products(rows: int, columns: int, inner: int, blocks: tuple, programs: int) -> torch.Tensor:
    """Several tiles a block, and more blocks of K than the ring has stages."""
    g = torch.Generator().manual_seed(0)
    sides = zip((rows, columns), blocks, strict=True)
    (x, scale_x), (w, scale_w) = (ak.quantize_fp8(torch.randn(n, inner, generator=g), block=one) for n, one in sides)
    with patch.object(_triton, "programs", lambda device: programs):
        return ak.linear_fp8(x, w, scale_x, scale_w, impl="cuda")


CASES: dict[str, list[Callable[[], torch.Tensor]]] = {
    "attention": [
        partial(packed, torch.bfloat16, 128, (40, 130), (300, 400), False),
        partial(packed, torch.float16, 64, (20, 200), (300, 520), True),
    ],
    "attention_backward": [
        partial(backward, torch.bfloat16, 128, 70, 140),
        partial(backward, torch.float16, 64, 130, 130),
    ],
    "log_mel": [
        partial(log_mel, torch.float32, 2, 22_400, 1),
        partial(log_mel, torch.int16, 2, 22_560, 1, 1),
    ],
    "decode_attention": [
        partial(attention, torch.float16, 300, 3, batch=2, heads=6, kv_heads=2),
        partial(attention, torch.float16, 560, 19, batch=1, heads=1, kv_heads=1, fp8=True),
    ],
    "paged_attention": [partial(paged, 16)],
    "ulysses_permute": [heads],
    "linear_fp8": [
        partial(products, 40, 128, 5 * 128, ((1, 128), (1, 128)), 1),
        partial(products, 40, 128, 5 * 128, ("row", "row"), 1),
    ],
}
# Seconds each; asked where the others say nothing.
LONG: dict[str, list[Callable[[], torch.Tensor]]] = {
    "log_mel": [partial(log_mel, torch.float32, 1, 321 * 5120, 3)],  # more tiles in a row than a block has threads
}
