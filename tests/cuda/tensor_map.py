"""What cuTensorMapEncodeTiled would make of a tensor, with its rules, as tests/cuda/barriers.cpp reads it."""

from __future__ import annotations

import struct

import torch

from afn_kernels import _tensor_map

MAGIC = 0x70616D74
SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}  # bytes


LAYOUT = struct.Struct("<Q4I5I5I4Q")


def encode(x: torch.Tensor, box: tuple[int, ...], swizzle: int) -> bytes:
    """As ``afn_kernels._tensor_map.encode``, for the emulation."""
    _tensor_map.check(x, box, swizzle)
    about = {"element": x.element_size(), "swizzle": swizzle, "sizes": x.shape[::-1], "box": box[::-1]}
    return packed(x.data_ptr(), {**about, "strides": _tensor_map.strides(x)})


def packed(address: int, about: dict) -> bytes:
    """A map of what is said of it; innermost dimension first, strides in bytes of all others."""
    rank, element, swizzle = len(about["sizes"]), about["element"], SWIZZLES[about["swizzle"]]
    sizes, box, strides = ((*about[name], *[0] * 5)[:n] for name, n in (("sizes", 5), ("box", 5), ("strides", 4)))
    return LAYOUT.pack(address, MAGIC, rank, element, swizzle, *sizes, *box, *strides).ljust(128, b"\0")


def unpacked(tensor_map: bytes) -> tuple[int, dict] | None:
    """Address, and what ``packed`` is told; None where nobody has encoded a map."""
    address, magic, rank, element, swizzle, *rest = LAYOUT.unpack_from(tensor_map)
    if magic != MAGIC:
        return None
    swizzle = next(size for size, number in SWIZZLES.items() if number == swizzle)
    parts = {"sizes": rest[:rank], "box": rest[5 : 5 + rank], "strides": rest[10 : 10 + rank - 1]}
    return address, {"element": element, "swizzle": swizzle, **parts}
