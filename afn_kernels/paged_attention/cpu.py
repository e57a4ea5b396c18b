"""The compiled kernel on a CPU, as paged_attention calls it."""

import torch

from afn_kernels import _cache_attention


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    lengths: torch.Tensor,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
) -> torch.Tensor:
    """[T, Hq, D]. A graph comes here without having looked at lengths and pages."""
    found = _cache_attention.attend(
        q, k_cache, v_cache, lengths, heads=q.shape[1], table=block_table, bounds=cu_seqlens_q, causal=causal,
        left=left, right=right, softcap=softcap, scale=scale,
    )  # fmt: skip
    if found is None:
        raise ValueError("paged_attention: a length is past its pages, or a page that is read is not there")
    return found
