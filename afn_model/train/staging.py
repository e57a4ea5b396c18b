"""Copies of a GPU's tensors in page-locked memory, from which a checkpoint is written while training goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.tensor import DTensor

CHUNK = 2**30  # bytes; PyTorch rounds page-locked memory up to a power of two
ALIGNED = 64


class KeptStager(AsyncStager):
    """Copies a state into host memory that it keeps: locking pages takes longer than copying to them.

    The copies are overwritten by the next, so that a save must be written before the next begins.

    Args:
        pin: lock the memory's pages, so that copies from a GPU run at the speed of its link.
    """

    _synchronize_after_execute = False

    def __init__(self, pin: bool = True):
        self.pin = pin
        self.chunks: list[Tensor] = []

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state with its tensors copied to the CPU; DTensors keep mesh and placements."""
        at, used, staged = 0, 0, {}
        for name, tensor in state_dict.items():
            local = tensor.detach()
            local = local.to_local() if isinstance(local, DTensor) else local
            while at < len(self.chunks) and used + local.nbytes > len(self.chunks[at]):
                at, used = at + 1, 0
            if at == len(self.chunks):
                size = max(CHUNK, local.nbytes)
                self.chunks.append(torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=self.pin))
            copy = self.chunks[at][used : used + local.nbytes].view(local.dtype).view(local.shape)
            copy.copy_(local, non_blocking=self.pin)
            used += -(-local.nbytes // ALIGNED) * ALIGNED
            if isinstance(tensor, DTensor):
                staged[name] = DTensor(copy, tensor._spec, requires_grad=False)
            else:
                staged[name] = copy
        if self.pin:
            torch.accelerator.synchronize()
        return staged
