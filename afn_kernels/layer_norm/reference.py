import torch
import torch.nn.functional as F


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, residual: torch.Tensor | None = None, eps: float
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    h = x if residual is None else x + residual
    # PyTorch's CPU kernel sums the weight gradient of bf16 inputs in bf16; in float32 it is exact enough.
    wide = torch.promote_types(h.dtype, torch.float32)
    y = F.layer_norm(h.to(wide), h.shape[-1:], weight.to(wide), bias.to(wide), eps).to(h.dtype)
    return y if residual is None else (y, h)
