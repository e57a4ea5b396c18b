"""Launch configurations of linear_cross_entropy and linear_logprob."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from afn_kernels import _device


@dataclass(frozen=True)
class Tile:
    """Logits of one step of the forward without gradient, and how its product is spread and pipelined."""

    tokens: int
    classes: int
    width: int
    warps: int
    stages: int
    reason: str


@dataclass(frozen=True)
class Chunk:
    """Rows whose logits are in memory at a time: as many as fit in ``scratch`` bytes, in steps of ``multiple``."""

    scratch: int
    multiple: int
    reason: str


TILE = Tile(
    tokens=128,
    classes=256,
    width=64,
    warps=8,
    stages=4,
    reason="two warpgroups of 64 x 256; 171 registers, 4 stages fill 192 of 227 KB; not timed",
)
SMALL_TILE = Tile(
    tokens=128,
    classes=128,
    width=64,
    warps=8,
    stages=3,
    reason="3 stages fill 96 of 99 KB; 64 registers of sums where operands are in registers too; not timed",
)
TILES = ((227, TILE), (0, SMALL_TILE))  # by the KB of shared memory that a device gives to a block
CHUNK = Chunk(
    scratch=360_000_000,
    multiple=128,
    reason="1,152 rows of 151,672 in 16 bits: 126 tiles of 128 x 256 in the hidden gradient [1152, 3584], one wave on "
    "132 multiprocessors (1,280 rows would need two); with all else below 0.5 GB; not timed",
)
MOST_SPLITS = 256  # one program puts the parts of a row together
PRODUCT = 8192  # classes in a product that a float32 gradient of the weight adds up: 59 MB of 3,584 in 16 bits
SEGMENT = 16384  # rows that the forward without gradient gathers at a time: 117 MB of 3,584 in 16 bits


def tile(device: torch.device) -> Tile:
    """The step of the forward without gradient."""
    return _device.fitting(TILES, device)


def chunk_rows(rows: int, row_bytes: int) -> int:
    """Rows per chunk: chunks of equal size, none larger than the scratch memory."""
    step = CHUNK.multiple
    most = max(CHUNK.scratch // row_bytes // step * step, step)
    chunks = -(-rows // most)
    return -(-rows // chunks // step) * step


@lru_cache
def splits(row_blocks: int, tiles: int, programs: int) -> int:
    """Into how many parts the vocabulary is split, so that the last wave of programs is nearly as full as the others.

    4 to 8 where there are rows enough: then 16 to 33 row blocks run together, their hidden states (at most 30 MB) stay
    in the L2 cache and the weight comes from memory only once per wave. For few rows, enough to occupy every program.
    """
    most = max(8, 2 * -(-programs // row_blocks))
    candidates = range(min(4, tiles), min(tiles, most, MOST_SPLITS) + 1)
    return min(candidates, key=lambda parts: (-(-row_blocks * parts // programs) * -(-tiles // parts), parts))
