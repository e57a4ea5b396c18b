"""Launch configurations of decode_attention, by the bytes of one cached key and by how many query rows share it."""

from dataclasses import dataclass

import torch

from afn_kernels import _device, _rows


@dataclass(frozen=True)
class DecodeSplit:
    """How the context is cut.

    Args:
        block: keys per step.
        warps: warps per program.
        stages: steps whose loads are in flight, the one in hand included; with pages ``HOPS`` more, in which the
            page's number travels.
        waves: programs per multiprocessor.
        least: keys below which a split is not worth its merge.
        merged: float32 values of partial results that a thread of the merge loads at once.
        reason: why.
    """

    block: int
    warps: int
    stages: int
    waves: int
    least: int
    merged: int
    reason: str


HOPS = 2
HEAD_DIMS = (64, 80, 96, 128, 256)  # of csrc/cuda's kernels


def choose(key_bytes: int, rows: int, device: torch.device | None = None) -> DecodeSplit:
    """The row for keys of ``key_bytes`` (padded width x element size) that ``rows`` query rows read."""
    return _rows.choose(_device.fitting(TABLES, device), key_bytes, rows)


_ONE = (
    "one program per multiprocessor: twice as many would double what the merge reads; {} KB of loads in flight against "
)
_ONE += "the 25 KB that bandwidth x latency asks for; by shared memory and register count, not timed"

# fmt: off
ROWS = (
    (128, 16, DecodeSplit(128, 8, 4, 1, 128, 64, _ONE.format("64 to 96"))),
    (128, 64, DecodeSplit(128, 8, 4, 1, 256, 32, _ONE.format("64 to 96"))),
    (256, 16, DecodeSplit(128, 8, 3, 1, 128, 64, _ONE.format("64 to 128"))),
    (256, 64, DecodeSplit(64, 8, 4, 1, 256, 32, _ONE.format("64 to 96"))),
    (512, 16, DecodeSplit(64, 8, 3, 1, 128, 64, _ONE.format("64 to 128"))),
    (512, 64, DecodeSplit(32, 8, 4, 1, 256, 32, _ONE.format("64 to 96"))),
    (1 << 30, 64, DecodeSplit(16, 8, 3, 1, 256, 32, "wide float32 keys: what fits shared memory; not timed")),
)
# fmt: on


_SMALL = "what fits 99 KB, with pages too, and does not spill in half precision; not timed"
SMALL_ROWS = (
    (128, 16, DecodeSplit(128, 8, 3, 1, 128, 64, _SMALL)),
    (128, 64, DecodeSplit(64, 8, 4, 1, 256, 32, _SMALL)),
    (256, 16, DecodeSplit(64, 8, 3, 1, 128, 64, _SMALL)),
    (256, 64, DecodeSplit(64, 8, 3, 1, 256, 32, _SMALL)),
    (512, 16, DecodeSplit(32, 8, 3, 1, 128, 64, _SMALL)),
    (512, 64, DecodeSplit(16, 8, 3, 1, 256, 32, _SMALL)),
    (1 << 30, 64, DecodeSplit(16, 8, 3, 1, 256, 32, _SMALL)),
)
TABLES = ((227, ROWS), (0, SMALL_ROWS))  # by the KB of shared memory that a device gives to a block


def least_tiles(rows: int) -> int:
    """Tiles of 32 KB of keys below which a share of csrc/cuda's kernel is not worth its merge.

    A part of 16 rows is an eighth of the bytes of a tile's keys and values, one of 64 rows a half. Not timed.
    """
    return 1 if rows <= 16 else 2
