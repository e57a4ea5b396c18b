import torch
import torch.nn.functional as F


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    residual: torch.Tensor | None = None,
    eps: float,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    h = x if residual is None else x + residual
    # PyTorch's CPU kernel sums the weight gradient of bf16 inputs in bf16; in float32 it is exact enough.
    wide = torch.promote_types(h.dtype, torch.float32)
    weight, bias = (None if parameter is None else parameter.to(wide) for parameter in (weight, bias))
    y = F.layer_norm(h.to(wide), h.shape[-1:], weight, bias, eps).to(x.dtype)
    return y if residual is None else (y, h)
