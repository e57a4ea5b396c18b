"""What cuTensorMapEncodeTiled would make of a tensor, with its rules, as tests/cuda/barriers.cpp reads it."""

from __future__ import annotations

import struct

import torch

from afn_kernels import _tensor_map

MAGIC = 0x70616D74
SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}  # bytes


def encode(x: torch.Tensor, box: tuple[int, ...], swizzle: int) -> bytes:
    """As ``afn_kernels._tensor_map.encode``, for the emulation."""
    _tensor_map.check(x, box, swizzle)
    fill = (0,) * (5 - x.ndim)
    sizes, boxes, strides = (*x.shape[::-1], *fill), (*box[::-1], *fill), (*_tensor_map.strides(x), *fill)
    parts = (x.data_ptr(), MAGIC, x.ndim, x.element_size(), SWIZZLES[swizzle], *sizes, *boxes, *strides)
    return struct.pack("<Q4I5I5I4Q", *parts).ljust(128, b"\0")
