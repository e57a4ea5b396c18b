"""What a GPU gives to one block, by which launch configurations are chosen."""

from contextlib import contextmanager
from functools import lru_cache

import torch

from afn_kernels._registry import constant

HOPPER = (9, 0)
# KB of shared memory that a block may ask for, by compute capability; newer ones than these are taken for the last.
SHARED_KB = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (10, 3): 227, (12, 0): 99}
FIRST_WITH_FP8 = (8, 9)
_assumed = HOPPER


@contextmanager
def assumed(capability: tuple[int, int]):
    """Within it, tensors without memory are on a GPU of this compute capability; otherwise on an H100."""
    global _assumed
    before, _assumed = _assumed, capability
    try:
        yield
    finally:
        _assumed = before


@constant
def shared(device: torch.device | None) -> int:
    """Bytes of shared memory that one block may ask for; of the assumed GPU where the tensors are not on a real one."""
    if device is not None and device.type == "cuda" and torch.cuda.is_available():
        return _asked(device)
    return of(_assumed)


def of(capability: tuple[int, int]) -> int:
    """The same for a compute capability."""
    known = [x for x in SHARED_KB if x <= capability]
    return (SHARED_KB[max(known)] if known else 48) << 10  # 48 KB: every GPU without asking


@lru_cache
def _asked(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


@constant
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability; the assumed one where the tensors are not on a real GPU."""
    real = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_capability(device) if real else _assumed


@constant  # torch.compile does not compare pairs of numbers
def fp8(device: torch.device) -> str:
    """Why kernels cannot convert to and from float8_e4m3fn; empty when they can."""
    found = capability(device)
    return "" if found >= FIRST_WITH_FP8 else f"the GPU is sm_{found[0]}{found[1]}; FP8 begins with sm_89"


def fitting(tables: tuple[tuple[int, object], ...], device: torch.device | None):
    """The first of (least KB of shared memory, table), those that need most first, for which a device has room."""
    room = shared(device)
    return next(table for least, table in tables if least << 10 <= room)
