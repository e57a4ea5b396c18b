import torch
import torch.nn.functional as F


def geglu(gate: torch.Tensor, up: torch.Tensor, *, approximate: str) -> torch.Tensor:
    return F.gelu(gate, approximate=approximate) * up
