"""The compiled kernel on a CPU, as decode_attention calls it."""

import torch

from afn_kernels import _cache_attention
from afn_kernels.decode_attention.arguments import OP, check_values


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    prefix_lengths: torch.Tensor | None,
    left: int,
    softcap: float,
    scale: float,
) -> torch.Tensor:
    """[B, n, Hq, D]. A graph comes here without having looked at lengths and pages."""
    batch, new, heads, width = q.shape
    found = _cache_attention.attend(
        q.reshape(batch * new, heads, width), k_cache, v_cache, lengths, heads=heads, fresh=new, table=block_table,
        prefixes=prefix_lengths, left=left, softcap=softcap, scale=scale,
    )  # fmt: skip
    if found is None:
        check_values(q, k_cache, lengths, block_table, prefix_lengths, None if left < 0 else (left, 0))
        raise ValueError(f"{OP}: a length or a page is not there")
    return found.view(q.shape)
