"""Tensor maps: how Hopper's asynchronous copies find a box of a tensor in global memory (see hopper.cuh)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch

from afn_kernels import _cuda

SWIZZLES = (0, 32, 64, 128)  # bytes, in the driver's order
TYPES = {
    torch.float32: "FLOAT32",
    torch.bfloat16: "BFLOAT16",
    torch.float16: "FLOAT16",
    torch.float8_e4m3fn: "UINT8",
    torch.uint8: "UINT8",
}

# For tests: makes maps that the emulation of Hopper reads.
emulator: Callable[[torch.Tensor, tuple[int, ...], int], bytes] | None = None


def mappable(x: torch.Tensor) -> torch.Tensor:
    """x as a tensor map takes it: adjacent elements, rows at multiples of 16 bytes. Copies only if it must."""
    rows = [stride * x.element_size() for stride, n in zip(x.stride()[:-1], x.shape, strict=False) if n > 1]
    fits = x.stride(-1) == 1 and not any(row % 16 or not 0 < row < 1 << 40 for row in rows) and not x.data_ptr() % 16
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def encode(x: torch.Tensor, box: tuple[int, ...], swizzle: int) -> bytes:
    """A tensor map for a kernel's parameters, "128s" of their layout at a multiple of 64; kept for the next call.

    Args:
        x: one to five dimensions, innermost last and dense, all other strides multiples of 16 bytes.
        box: elements of each dimension that a copy moves, in the same order.
        swizzle: 0, 32, 64 or 128 bytes; where it is none, rows of a box are as long as it.

    Raises:
        ValueError: what the driver would refuse; a swizzled box whose rows are not as long as the swizzle.
        RuntimeError: what the driver says.

    A tensor without memory has an empty map.
    """
    check(x, box, swizzle)
    if x.is_meta:
        return bytes(128)
    if emulator is not None:
        return emulator(x, box, swizzle)
    return _encoded(x.data_ptr(), x.dtype, tuple(x.shape), tuple(strides(x)), tuple(box), swizzle)


def check(x: torch.Tensor, box: tuple[int, ...], swizzle: int) -> None:
    """Raises for what ``encode`` does not take."""
    size = x.element_size()
    if x.dtype not in TYPES:
        raise ValueError(f"a tensor map of {x.dtype}: it has one of {', '.join(str(dtype) for dtype in TYPES)}")
    if not 1 <= x.ndim <= 5 or len(box) != x.ndim:
        raise ValueError(f"a box of {len(box)} dimensions of a tensor of {x.ndim}")
    if not all(1 <= n < 1 << 32 for n in x.shape):
        raise ValueError(f"a tensor map has sizes of 1 to 2³² - 1, not {tuple(x.shape)}")
    address = 0 if x.is_meta else x.data_ptr()
    if x.stride(-1) != 1 or address % 16 or any(not 0 <= stride < 1 << 40 or stride % 16 for stride in strides(x)):
        raise ValueError(f"a tensor map needs dense rows and multiples of 16 bytes, not strides {x.stride()} of {size}")
    row = box[-1] * size
    if not all(1 <= n <= 256 for n in box) or row % 16:
        raise ValueError(f"a box has 1 to 256 elements in each dimension and rows of multiples of 16 bytes, not {box}")
    if swizzle not in SWIZZLES or (swizzle and row != swizzle):
        raise ValueError(f"rows of {row} bytes cannot be swizzled by {swizzle}")


def strides(x: torch.Tensor) -> list[int]:
    """Bytes, outermost last, of all dimensions but the innermost; that of a single element means nothing and is 16."""
    return [x.stride(i) * x.element_size() if x.shape[i] > 1 else 16 for i in range(x.ndim - 2, -1, -1)]


@lru_cache(maxsize=4096)
def _encoded(
    address: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    swizzle: int,
) -> bytes:
    driver = _cuda._driver()
    wide, narrow = driver.cuuint64_t, driver.cuuint32_t
    code, made = driver.cuTensorMapEncodeTiled(
        getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{TYPES[dtype]}"),
        len(shape),
        address,
        [wide(n) for n in reversed(shape)],
        [wide(n) for n in strides],
        [narrow(n) for n in reversed(box)],
        [narrow(1)] * len(shape),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle(SWIZZLES.index(swizzle)),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if code:
        said = _cuda._said(code)
        raise RuntimeError(f"tensor map of {dtype} {shape}, strides {strides}, box {box}, swizzle {swizzle}: {said}")
    return ctypes.string_at(int(made.getPtr()), 128)
