"""Tiles of csrc/cuda/linear_fp8.cu."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProductTile:
    """A tile of y that one block computes.

    Args:
        rows: of x.
        columns: rows of w.
        consumers: warpgroups that multiply.
        stages: blocks of 128 of K in shared memory.
        clocks: that a block of 128 of K takes at least, by what L2 gives to a multiprocessor; see ``choose``.
        reason: why.
    """

    rows: int
    columns: int
    consumers: int
    stages: int
    clocks: int
    reason: str

    @property
    def threads(self) -> int:
        return 128 * (1 + self.consumers)

    def shared(self, scaled: bool) -> int:
        """Bytes of shared memory, with or without scales of each block."""
        both = self.rows + self.columns
        return self.stages * (128 * both + (4 * both if scaled else 0) + 16) + 4 * self.consumers * 16 * 40 * 4

    def count(self, rows: int, columns: int) -> int:
        """Tiles of a result."""
        return -(-rows // self.rows) * -(-columns // self.columns)


LARGE = ProductTile(
    256, 128, 2, 4, 1365,
    "sums of 128 x 128 a warpgroup beside products of 64 x 128 fill its 232 registers; 48 KB of each block against the "
    "64 KB of two smaller tiles; not timed",
)  # fmt: skip
MEDIUM = ProductTile(
    128, 128, 2, 6, 910, "twice as many tiles, where the large ones leave multiprocessors idle; not timed"
)
SMALL = ProductTile(64, 64, 1, 8, 455, "a decode step reads weights: as many blocks as there can be; not timed")


def choose(rows: int, columns: int, processors: int) -> ProductTile:
    """The tile with the least estimate: its clocks times the tiles that the busiest multiprocessor has.

    Clocks are 128 (rows + columns) bytes at 36 a clock, which a published bfloat16 kernel reaches without multicast:
    778 TFLOP/s of tiles of 192 x 192 (fast.cu's kernel 6). At the matrix unit's own rate they are 1024, 512 and 128.
    """
    if rows <= SMALL.rows:
        return SMALL
    return min((LARGE, MEDIUM), key=lambda tile: tile.clocks * -(-tile.count(rows, columns) // processors))
