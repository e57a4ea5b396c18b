import torch
import torch.nn.functional as F

from afn_kernels.quantize_fp8.reference import quantize_fp8


def swiglu(
    gate: torch.Tensor, up: torch.Tensor, *, block: tuple[int, int] | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    y = F.silu(gate) * up
    return y if block is None else quantize_fp8(y, height=block[0], width=block[1], transpose=False)
