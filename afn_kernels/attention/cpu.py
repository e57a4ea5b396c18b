"""The compiled kernel on a CPU, as attention calls it."""

import torch

from afn_kernels import _cache_attention


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
) -> torch.Tensor:
    """[Tq, Hq, D]. A graph comes here without having looked at boundaries."""
    bounds = torch.tensor([0, len(q)], dtype=torch.int32) if cu_seqlens_q is None else cu_seqlens_q.contiguous()
    key_bounds = torch.tensor([0, len(k)], dtype=torch.int32) if cu_seqlens_k is None else cu_seqlens_k.contiguous()
    found = None
    if len(bounds) == len(key_bounds) and int(bounds[0]) >= 0 and int(bounds[-1]) <= len(q):
        found = _cache_attention.attend(
            q, k[None], v[None], None, heads=q.shape[1], bounds=bounds, key_bounds=key_bounds, causal=causal,
            left=left, right=right, softcap=softcap, scale=scale,
        )  # fmt: skip
    if found is None:
        raise ValueError(f"attention: boundaries reach past the {len(q)} queries or {len(k)} keys")
    return found
