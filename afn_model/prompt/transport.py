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
    def of(value: Any, *, shared: bool = False) -> Parcel:
        """Packs an object that can be pickled; its tensors are copied.

        Args:
            value: the object.
            shared: into shared memory. What a worker returns is put there anyway, but by a thread whose errors nobody
                hears of: a trainer would wait for ever for what did not fit.

        Raises:
            ValueError: shared memory has no room for it.
        """
        file, found = io.BytesIO(), []
        _Pickler(file, found).dump(value)
        at, tensors = 0, []
        for tensor in found:
            tensors.append((at, tensor.dtype, tuple(tensor.shape)))
            at += -(-tensor.nbytes // ALIGNED) * ALIGNED
        buffer = _shared_buffer(max(at, 1)) if shared else torch.empty(max(at, 1), dtype=torch.uint8)
        for tensor, place in zip(found, tensors, strict=True):
            view(buffer, *place).copy_(tensor)
        return Parcel(buffer, tensors, file.getvalue())

    def unpack(self) -> Any:
        """The object; its tensors are views of the buffer."""
        return _Unpickler(io.BytesIO(self.rest), [view(self.buffer, *place) for place in self.tensors]).load()

    def pin_memory(self, device: Any = None) -> Parcel:
        """The parcel in page-locked memory, which a GPU reads while the host goes on; ``DataLoader`` calls it."""
        return replace(self, buffer=self.buffer.pin_memory())


@dataclass(frozen=True)
class Failure:
    """What a worker hands over where it has failed: one line, without the traceback that ``DataLoader`` adds."""

    message: str

    def unpack(self) -> Any:
        """
        Raises:
            ValueError: always.
        """
        raise ValueError(self.message)


def _shared_buffer(count: int) -> Tensor:
    try:
        return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(count))
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"a micro-batch of {count / 1e6:.1f} MB does not fit into shared memory ({said}): enlarge /dev/shm, raise "
            "`ulimit -n`, or take fewer workers"
        ) from None


# Classes made in the methods above would be garbage in a cycle, and with them the audio of every micro-batch: a trainer
# that collects garbage rarely would run out of memory.
class _Pickler(pickle.Pickler):
    """Puts tensors into ``found``, and their numbers there into the file."""

    def __init__(self, file: io.BytesIO, found: list[Tensor]):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.found, self.places = found, {}

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not Tensor:
            return None
        if id(obj) not in self.places:
            self.places[id(obj)] = len(self.found)
            self.found.append(obj)
        return self.places[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Puts ``tensors`` in the places of their numbers."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]):
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self.tensors[pid]


def view(buffer: Tensor, first: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor in a buffer of bytes."""
    count = torch.Size(shape).numel()
    return buffer[first : first + count * dtype.itemsize].view(dtype).view(shape)
