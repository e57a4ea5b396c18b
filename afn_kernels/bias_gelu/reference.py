import torch
import torch.nn.functional as F


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None, *, approximate: str) -> torch.Tensor:
    return F.gelu(x if bias is None else x + bias, approximate=approximate).to(x.dtype)
