"""The reference as one op of a traced graph: what depends on the lengths stays inside of it."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary


def fake(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, cu_seqlens_q: Tensor, lengths: Tensor,
    k_scale: Tensor | None, v_scale: Tensor | None, causal: bool, left: int, right: int, softcap: float, scale: float,
) -> Tensor:  # fmt: skip
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


PLAIN = Boundary("paged_attention_plain", "afn_kernels.paged_attention.reference:gathered", fake)
