"""Launch configurations of log_mel."""

from dataclasses import dataclass

import torch

from afn_kernels import _device


@dataclass(frozen=True)
class LogMelTile:
    """``frames`` and ``warps`` of a program; ``piece`` columns of a folded operand and ``chunk`` elements at a time."""

    frames: int
    warps: int
    piece: int
    chunk: int
    reason: str


def choose(small: bool, device: torch.device | None = None) -> LogMelTile:
    return INTERPRETED if small else _device.fitting(TABLES, device)


GPU = LogMelTile(
    frames=128,
    warps=8,
    piece=32,
    chunk=4096,
    reason="no spills; 64 frames read the matrices twice as often, pieces of 16 wait twice as often; not timed",
)
SMALL_GPU = LogMelTile(
    frames=32,
    warps=4,
    piece=32,
    chunk=4096,
    reason="48 KB, and 8 bytes spilled where 64 frames spill 56 and 128 frames 536; before Hopper; not timed",
)
TABLES = ((227, GPU), (0, SMALL_GPU))  # by the KB of shared memory that a device gives to a block
INTERPRETED = LogMelTile(256, 8, piece=64, chunk=65536, reason="a program costs milliseconds whatever its size")
