"""How a worker hands over what it has made: all of its tensors in one piece of shared memory.

PyTorch keeps a file descriptor open for every piece of shared memory, and a process may often have no more than 1,024.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

ALIGNED = 64  # bytes: every tensor begins at a multiple of it


# Not classes made anew in a function: each would be a cycle, which keeps its tensors until Python collects garbage, and
# the trainer lets it do so every 50 steps.
class Packer(pickle.Pickler):
    """Puts numbers in the places of tensors, which it keeps in ``found``."""

    def __init__(self, *options: Any):
        super().__init__(*options)
        self.found: list[Tensor] = []
        self.places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not Tensor:
            return None
        if id(obj) not in self.places:
            self.places[id(obj)] = len(self.found)
            self.found.append(obj)
        return self.places[id(obj)]


class Unpacker(pickle.Unpickler):
    """Puts ``views`` in the places of their numbers."""

    views: list[Tensor]

    def persistent_load(self, pid: int) -> Tensor:
        return self.views[pid]


@dataclass(frozen=True)
class Parcel:
    """Any object, its tensors one after another in one buffer.

    Args:
        buffer: [bytes] uint8.
        tensors: (first byte, dtype, shape) of each.
        rest: the pickled object, with numbers in the tensors' places.
    """

    buffer: Tensor
    tensors: list[tuple[int, torch.dtype, tuple[int, ...]]]
    rest: bytes

    @staticmethod
    def of(value: Any) -> Parcel:
        """Packs an object that can be pickled; its tensors are copied."""
        file = io.BytesIO()
        pickler = Packer(file, pickle.HIGHEST_PROTOCOL)
        pickler.dump(value)
        found = pickler.found
        at, tensors = 0, []
        for tensor in found:
            tensors.append((at, tensor.dtype, tuple(tensor.shape)))
            at += -(-tensor.nbytes // ALIGNED) * ALIGNED
        buffer = torch.empty(max(at, 1), dtype=torch.uint8)
        for tensor, place in zip(found, tensors, strict=True):
            view(buffer, *place).copy_(tensor)
        return Parcel(buffer, tensors, file.getvalue())

    def unpack(self) -> Any:
        """The object; its tensors are views of the buffer."""
        unpickler = Unpacker(io.BytesIO(self.rest))
        unpickler.views = [view(self.buffer, *place) for place in self.tensors]
        return unpickler.load()

    def pin_memory(self, device: Any = None) -> Parcel:
        """The parcel in page-locked memory, which a GPU reads while the host goes on; ``DataLoader`` calls it."""
        return replace(self, buffer=self.buffer.pin_memory())


def view(buffer: Tensor, first: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor in a buffer of bytes."""
    count = torch.Size(shape).numel()
    return buffer[first : first + count * dtype.itemsize].view(dtype).view(shape)
