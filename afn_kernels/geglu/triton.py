"""The gated kernels with GELU; gate and up may be two halves of one tensor."""

import torch

from afn_kernels import _triton_activations as activations
from afn_kernels._rows import choose
from afn_kernels.geglu.config import ROWS


def forward(gate: torch.Tensor, up: torch.Tensor, approximate: str) -> torch.Tensor:
    """gate, up [T, D] -> y [T, D]."""
    return activations.gated_forward(gate, up, f"gelu_{approximate}", choose(ROWS, gate.shape[1]))


def backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, need_dgate: bool, need_dup: bool, approximate: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """dgate and dup [T, D], each empty when it is not needed."""
    kind, tile = f"gelu_{approximate}", choose(ROWS, gate.shape[1])
    return activations.gated_backward(dy, gate, up, need_dgate, need_dup, kind, tile)
