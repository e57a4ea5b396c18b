"""paged_attention as torch.compile sees it; it has no backward."""

import torch
from torch import Tensor

from afn_kernels._cache_attention import indices
from afn_kernels._library import Boundary
from afn_kernels.attention.window import flat
from afn_kernels.paged_attention.traced import fake


def _fake_cpu(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, cu_seqlens_q: Tensor, lengths: Tensor,
    causal: bool, left: int, right: int, softcap: float, scale: float,
) -> Tensor:  # fmt: skip
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


FORWARD = Boundary("paged_attention", "afn_kernels.paged_attention.triton:forward", fake)
FORWARD_CUDA = Boundary("paged_attention_cuda", "afn_kernels.paged_attention.cuda:forward", fake)
FORWARD_CPU = Boundary("paged_attention_cpu", "afn_kernels.paged_attention.cpu:forward", _fake_cpu)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def paged_attention(q, k_cache, v_cache, **options):
    """The "triton" row of the op's table."""
    return _attend(FORWARD, q, k_cache, v_cache, **options)


def paged_attention_cuda(q, k_cache, v_cache, **options):
    """The "cuda" row of the op's table."""
    return _attend(FORWARD_CUDA, q, k_cache, v_cache, **options)


def _attend(
    forward, q, k_cache, v_cache, *, block_table, cu_seqlens_q, lengths, k_scale, v_scale, causal, window, softcap,
    scale,
):  # fmt: skip
    k_scale, v_scale = (None if x is None else x.detach().reshape(-1).contiguous() for x in (k_scale, v_scale))
    tensors = _rows(q), _rows(k_cache), _rows(v_cache), _rows(block_table), cu_seqlens_q, lengths, k_scale, v_scale
    return forward(*tensors, causal, *flat(window), float(softcap), float(scale))


def paged_attention_cpu(
    q, k_cache, v_cache, *, block_table, cu_seqlens_q, lengths, k_scale, v_scale, causal, window, softcap, scale
):  # fmt: skip
    """The "cpu" row of the op's table."""
    caches = q.contiguous(), _rows(k_cache), _rows(v_cache)
    numbers = indices(block_table), cu_seqlens_q.contiguous(), indices(lengths)
    return FORWARD_CPU(*caches, *numbers, causal, *flat(window), float(softcap), float(scale))
