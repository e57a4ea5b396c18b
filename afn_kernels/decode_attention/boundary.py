"""decode_attention as torch.compile sees its Triton kernel; it has no backward."""

import torch

from afn_kernels._library import Boundary


def _fake(q, k_cache, v_cache, lengths, block_table, k_scale, v_scale, scale):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


FORWARD = Boundary(
    "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor? block_table, "
    "Tensor? k_scale, Tensor? v_scale, float scale) -> Tensor",
    "afn_kernels.decode_attention.triton:forward",
    _fake,
)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def decode_attention(q, k_cache, v_cache, lengths, *, block_table, k_scale, v_scale, scale):
    """The "triton" row of the op's table."""
    k_scale, v_scale = (None if x is None else x.detach().reshape(-1).contiguous() for x in (k_scale, v_scale))
    table = None if block_table is None else _rows(block_table)
    lengths = lengths.contiguous()
    return FORWARD(_rows(q), _rows(k_cache), _rows(v_cache), lengths, table, k_scale, v_scale, scale)
