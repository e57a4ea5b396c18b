"""The forward of ``attention`` on Hopper with keys and values in pages: csrc/include/afn/attention_forward.cuh."""

import torch

from afn_kernels.attention import hopper
from afn_kernels.attention.config import CUDA_QUERIES
from afn_kernels.paged_attention.tiles import tiles_of

KERNELS = hopper.kernels("paged_attention")


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    lengths: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
) -> torch.Tensor:
    """[T, Hq, D], contiguous; neither scales, a window nor a softcap."""
    tokens, _, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel() or not k_cache.numel() or not block_table.numel():
        return out.zero_()
    capacity = block_table.shape[1] * k_cache.shape[1]
    table = tiles_of(cu_seqlens_q, lengths, tokens, capacity, CUDA_QUERIES[width], causal)
    pages = block_table if block_table.dtype == torch.int32 else block_table.int()
    hopper.launch(KERNELS[q.dtype, width], q, k_cache, v_cache, out, None, None, table, pages, causal, scale)
    return out
