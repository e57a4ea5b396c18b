"""Which block of which sequence every program of the kernels takes."""

import torch
import torch.nn.functional as F

from afn_kernels.attention.schedule import tile_table


def tiles_of(
    cu_seqlens_q: torch.Tensor, lengths: torch.Tensor, tokens: int, capacity: int, block: int, causal: bool
) -> torch.Tensor:
    """[tiles, 5] int32: first query, queries, sequence, keys and block of every tile, those with most work first."""
    cu_k = F.pad(lengths.long().clamp(0, capacity).cumsum(0), (1, 0))
    table = tile_table(cu_seqlens_q, cu_k, tokens, len(lengths) * capacity, block, causal, False)
    table[:, 2] = torch.searchsorted(
        cu_seqlens_q[1:].contiguous(), table[:, 0].contiguous(), right=True, out_int32=True
    )
    return table
