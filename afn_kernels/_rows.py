"""[..., D] as the rows [T, D] that a kernel walks."""

import torch


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x [..., D] as [T, D] with adjacent elements within a row; rows may be any distance apart. Copies if it must."""
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
