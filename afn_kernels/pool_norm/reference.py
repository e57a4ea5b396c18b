import torch

from afn_kernels.layer_norm.reference import layer_norm
from afn_kernels.rote.reference import rote as rotated


def pool_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None,
    total: int | None,
    eps: float,
    rote: dict | None,
) -> torch.Tensor:
    x = x[..., : x.shape[-2] // 2 * 2, :] if cu_seqlens is None else x[rows_kept(cu_seqlens, total)]
    pairs = x.unflatten(-2, (x.shape[-2] // 2, 2))
    wide = torch.promote_types(x.dtype, torch.float32)
    y = layer_norm(pairs.to(wide).mean(-2), weight.to(wide), bias.to(wide), eps=eps).to(x.dtype)
    if rote is None:
        return y
    window, frame = rote["window"].flatten(), rote["frame"].flatten()
    return rotated(y.flatten(0, -2), **(rote | {"window": window, "frame": frame})).view_as(y)


def rows_kept(cu_seqlens: torch.Tensor, total: int | None) -> torch.Tensor:
    """Rows of the packed input that have a partner: all but the last row of each odd sequence."""
    start, length = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    even = length // 2 * 2
    shift = start - (even.cumsum(0) - even)
    shift = torch.repeat_interleave(shift, even, output_size=None if total is None else 2 * total)
    return shift + torch.arange(len(shift), device=cu_seqlens.device)
