"""paged_attention as torch.compile sees it; it has no backward."""

from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels.attention.window import flat
from afn_kernels.paged_attention.traced import fake

FORWARD = Boundary("paged_attention", "afn_kernels.paged_attention.triton:forward", fake)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def paged_attention(
    q, k_cache, v_cache, *, block_table, cu_seqlens_q, lengths, k_scale, v_scale, causal, window, softcap, scale
):  # fmt: skip
    """The "triton" row of the op's table."""
    k_scale, v_scale = (None if x is None else x.detach().reshape(-1).contiguous() for x in (k_scale, v_scale))
    tensors = _rows(q), _rows(k_cache), _rows(v_cache), _rows(block_table), cu_seqlens_q, lengths, k_scale, v_scale
    return FORWARD(*tensors, causal, *flat(window), float(softcap), float(scale))
