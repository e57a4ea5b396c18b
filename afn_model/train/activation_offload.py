"""Activation offload: inputs of recomputed blocks wait for their backward in host memory."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from afn_model.train.host_memory import Arena, Lane

LEAST = 2**20  # bytes; smaller tensors stay on the GPU


class ActivationOffload:
    """Where inputs of checkpointed blocks are between forward and backward.

    A block's inputs are copied to the host while the block runs, and leave the GPU when the next block begins; they
    come back while the block behind it goes backward, one block ahead. What the GPU holds of them is that of two
    blocks. Nothing is computed with: losses and gradients are the same to the last bit.

    Every tensor that a copy reads or writes was allocated by the stream that computes, which waits for the copy before
    it lets go of the tensor: freed memory is reused behind the copy, and the host may run ahead of the GPU.

    Args:
        device: of the activations; on a CPU the same is done by plain copies.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.outward, self.inward = Lane(device), Lane(device)
        self.arena = Arena(device)
        self.block = 0
        self.blocks: dict[int, weakref.WeakSet[Saved]] = {}
        self.leaving: deque[weakref.ref[Saved]] = deque()

    def inputs(self, *args: Any) -> saved_tensors_hooks:
        """A context in which one checkpointed block is called: its inputs that have a gradient are offloaded.

        Those without one are few, and shared by all blocks: positions, lengths.
        """
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor) and x.requires_grad and x.is_contiguous()]
        wanted = {x.untyped_storage()._cdata for x in tensors if x.nbytes >= LEAST}
        self.block += 1
        self.release()
        if not self.arena.live:
            self.blocks.clear()
        here = self.blocks[self.block] = weakref.WeakSet()

        def pack(tensor: Tensor) -> Tensor | Saved:
            if tensor.untyped_storage()._cdata not in wanted or not tensor.is_contiguous():
                return tensor
            saved = Saved(self, tensor, self.block)
            here.add(saved)
            self.leaving.append(weakref.ref(saved))
            return saved

        return saved_tensors_hooks(pack, self.unpack)

    def release(self) -> None:
        """Lets go of the inputs of the block before, whose copies are most likely done."""
        while self.leaving:
            if (saved := self.leaving.popleft()()) is not None:
                saved.leave()

    def unpack(self, kept: Tensor | Saved) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        found = kept.back()
        for saved in self.blocks.get(kept.block - 1, ()):
            saved.fetch()
        return found


class Saved:
    """A tensor that is on the host, on the GPU, or on its way.

    Args:
        offload: whose streams and memory are used.
        tensor: on the device.
        block: number of the block that it goes into.
    """

    def __init__(self, offload: ActivationOffload, tensor: Tensor, block: int):
        self.offload, self.block = offload, block
        self.host = offload.arena.take(tensor, self)
        self.there: Tensor | None = tensor
        lane = offload.outward
        with torch.no_grad():
            self.moving = lane.copy(self.host, tensor, lane.reached())

    def leave(self) -> None:
        """Lets go of the tensor on the device once it is on the host."""
        self.offload.outward.wait(self.moving)
        self.there = self.moving = None

    def fetch(self) -> None:
        """Begins to bring the tensor back, unless it is there."""
        if self.there is None:
            lane = self.offload.inward
            with torch.no_grad():
                self.there = torch.empty_like(self.host, device=self.offload.device)
                self.moving = lane.copy(self.there, self.host, lane.reached())

    def back(self) -> Tensor:
        """The tensor on the device, which this object holds no longer."""
        self.fetch()
        found = self.there
        assert found is not None
        self.leave()
        return found

    def __del__(self):
        # The device's memory of a copy that nobody has waited for would be used again too early.
        if self.moving is not None:
            self.offload.outward.wait(self.moving)
