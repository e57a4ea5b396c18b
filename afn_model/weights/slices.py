"""Weights read where they are needed: of each tensor the slice that this rank holds, in the dtype that it has there."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils import swap_tensors

from afn_model.checks import said, shown
from afn_model.weights.checkpoint import DTYPES, Stored, open_shard

PIECE = 64 * 2**20  # bytes read at a time: what loading takes beside the weights


class StoredWeights:
    """The weights of a checkpoint folder, for models that were made on the meta device.

    Args:
        stored: where each lies, as ``afn_model.weights.checkpoint.on_meta`` returns it.

    Attributes:
        read: bytes read so far.
        largest: bytes of the largest piece.
    """

    def __init__(self, stored: dict[str, Stored]):
        self.stored, self.read, self.largest = stored, 0, 0

    @torch.no_grad()
    def fill(self, module: nn.Module, device: torch.device, prefix: str = "") -> None:
        """Gives every parameter that is on the meta device memory and its stored values, in place.

        A sharded parameter gets this rank's rows alone. Parameters stay the objects that they are, so that those that
        two models share stay shared.

        Args:
            module: sharded or not.
            device: where the weights go.
            prefix: of the parameters' names in the checkpoint.

        Raises:
            ValueError: one line: a tensor that is not stored or cannot be read.
        """
        empty = {name: p for name, p in module.named_parameters() if p.is_meta}
        if missing := [prefix + name for name in empty if prefix + name not in self.stored]:
            raise ValueError(f"no stored weights for {', '.join(missing[:3])}")
        allocate(module, device)
        by_file: dict[Path, list[str]] = {}
        for name in empty:
            by_file.setdefault(self.stored[prefix + name].file, []).append(name)
        for file, names in by_file.items():
            taken = PIECE + 1
            for name in names:
                target, where = held(empty[name])
                for rows, part in pieces(target, where, self.stored[prefix + name]):
                    if taken > PIECE:  # the pages of a mapping pile up until it is closed
                        shard, taken = open_shard(file), 0
                    found = read_slice(shard, self.stored[prefix + name], part)
                    taken, self.read = taken + found.nbytes, self.read + found.nbytes
                    self.largest = max(self.largest, found.nbytes)
                    target[rows].copy_(found)
                    del found


def allocate(module: nn.Module, device: torch.device) -> None:
    """Memory for all parameters on the meta device, which stay the same objects; their values are undefined."""

    def real(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

    for parameter in module.parameters():
        if parameter.is_meta and not isinstance(parameter, DTensor):
            swap_tensors(parameter, nn.Parameter(real(parameter), parameter.requires_grad))
    # FSDP2 has its own memory for a shard, and learns here that it is another.
    module._apply(real)


def held(parameter: nn.Parameter) -> tuple[Tensor, tuple[slice, ...]]:
    """The part of a parameter that this rank holds, and where that is in the whole."""
    if not isinstance(parameter, DTensor):
        return parameter.data, tuple(slice(0, size) for size in parameter.shape)
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local(), tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))


def pieces(target: Tensor, where: tuple[slice, ...], stored: Stored) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """Rows of a target, of at most ``PIECE`` stored bytes or one row, and the slice of the whole that they are."""
    if not target.numel():
        return
    if not where:
        yield slice(None), ()
        return
    first, *others = where
    row = prod(part.stop - part.start for part in others) * DTYPES[stored.dtype].itemsize
    step = max(PIECE // max(row, 1), 1)
    for start in range(first.start, first.stop, step):
        stop = min(start + step, first.stop)
        yield slice(start - first.start, stop - first.start), (slice(start, stop), *others)


def read_slice(shard, stored: Stored, part: tuple[slice, ...]) -> Tensor:
    try:
        return shard.get_slice(stored.key)[part] if part else shard.get_tensor(stored.key)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{stored.file}: {shown(stored.key)} cannot be read: {said(error)}") from error
