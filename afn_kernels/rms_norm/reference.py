import torch


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, *, residual: torch.Tensor | None, eps: float
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    h = x if residual is None else x + residual
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = weight * y.to(h.dtype)
    return y if residual is None else (y, h)
