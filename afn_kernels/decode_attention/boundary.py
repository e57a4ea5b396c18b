"""decode_attention as torch.compile sees its kernels; they have no backward."""

import torch
from torch import Tensor

from afn_kernels._cache_attention import indices
from afn_kernels._library import Boundary


def _fake(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None,
    k_scale: Tensor | None, v_scale: Tensor | None, split: int, left: int, softcap: float, scale: float,
) -> Tensor:  # fmt: skip
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _fake_prefix(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, prefix_lengths: Tensor, block_table: Tensor | None,
    k_scale: Tensor | None, v_scale: Tensor | None, split: int, softcap: float, scale: float,
) -> Tensor:  # fmt: skip
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _fake_cpu(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None,
    prefix_lengths: Tensor | None, left: int, softcap: float, scale: float,
) -> Tensor:  # fmt: skip
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


FORWARD = Boundary("decode_attention", "afn_kernels.decode_attention.triton:forward", _fake)
FORWARD_PREFIX = Boundary(
    "decode_attention_shared_prefix", "afn_kernels.decode_attention.shared_prefix:forward", _fake_prefix
)
FORWARD_CUDA = Boundary("decode_attention_cuda", "afn_kernels.decode_attention.cuda:forward", _fake)
FORWARD_CPU = Boundary("decode_attention_cpu", "afn_kernels.decode_attention.cpu:forward", _fake_cpu)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def decode_attention(q, k_cache, v_cache, lengths, *, prefix_lengths=None, **options):
    """The "triton" row of the op's table."""
    if prefix_lengths is None:
        return _called(FORWARD, q, k_cache, v_cache, lengths, **options)
    return _called(FORWARD_PREFIX, q, k_cache, v_cache, lengths, prefix_lengths.contiguous(), **options)


def decode_attention_cuda(q, k_cache, v_cache, lengths, *, block_table, prefix_lengths=None, **options):
    """The "cuda" row of the op's table."""
    assert prefix_lengths is None, "its row refuses them"
    lengths, table = (
        x if x is None or x.dtype in (torch.int32, torch.int64) else x.int() for x in (lengths, block_table)
    )
    return _called(FORWARD_CUDA, q, k_cache, v_cache, lengths, block_table=table, **options)


def decode_attention_cpu(
    q, k_cache, v_cache, lengths, *, block_table, prefix_lengths=None, window=None, softcap=0.0, scale, **_
):  # fmt: skip
    """The "cpu" row of the op's table."""
    numbers = indices(lengths), indices(block_table), indices(prefix_lengths)
    left = -1 if window is None else window[0]
    return FORWARD_CPU(q.contiguous(), _rows(k_cache), _rows(v_cache), *numbers, left, float(softcap), float(scale))


def _called(
    forward: Boundary, q, k_cache, v_cache, lengths, *prefix,
    block_table, k_scale, v_scale, scale, split=0, window=None, softcap=0.0,
):  # fmt: skip
    k_scale, v_scale = (None if x is None else x.detach().reshape(-1).contiguous() for x in (k_scale, v_scale))
    table = None if block_table is None else _rows(block_table)
    tensors = _rows(q), _rows(k_cache), _rows(v_cache), lengths.contiguous(), *prefix, table, k_scale, v_scale
    left = () if prefix else (-1 if window is None else window[0],)
    return forward(*tensors, split, *left, float(softcap), float(scale))
