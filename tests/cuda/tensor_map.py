"""What cuTensorMapEncodeTiled would make of a tensor, with its rules, as tests/cuda/barriers.cpp reads it."""

from __future__ import annotations

import struct

import torch

MAGIC = 0x70616D74
SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}  # bytes


def encode(x: torch.Tensor, box: tuple[int, ...], swizzle: int) -> bytes:
    """128 bytes for a kernel's parameters.

    Args:
        x: one to five dimensions, innermost last and dense.
        box: elements of each dimension that a copy fetches, in the same order.
        swizzle: 0, 32, 64 or 128 bytes.

    Raises:
        ValueError: what the driver would refuse; a swizzled box whose rows are not as long as the swizzle.
    """
    size, row = x.element_size(), box[-1] * x.element_size()
    if not 1 <= x.ndim <= 5 or len(box) != x.ndim:
        raise ValueError(f"a box of {len(box)} dimensions of a tensor of {x.ndim}")
    if x.stride(-1) != 1 or x.data_ptr() % 16 or any(stride * size % 16 for stride in x.stride()[:-1]):
        raise ValueError(f"a tensor map needs dense rows and multiples of 16 bytes, not strides {x.stride()} of {size}")
    if not all(1 <= n <= 256 for n in box) or row % 16:
        raise ValueError(f"a box has 1 to 256 elements in each dimension and rows of multiples of 16 bytes, not {box}")
    if swizzle not in SWIZZLES or (swizzle and row != swizzle):
        raise ValueError(f"rows of {row} bytes cannot be swizzled by {swizzle}")
    fill = (0,) * (5 - x.ndim)
    sizes, boxes = (*x.shape[::-1], *fill), (*box[::-1], *fill)
    strides = ([stride * size for stride in x.stride()[-2::-1]] + [0] * 4)[:4]
    parts = (x.data_ptr(), MAGIC, x.ndim, size, SWIZZLES[swizzle], *sizes, *boxes, *strides)
    return struct.pack("<Q4I5I5I4Q", *parts).ljust(128, b"\0")
