"""Launch configurations of paged_attention, by head dimension."""

from dataclasses import dataclass

import torch

from afn_kernels import _device, _rows, _triton


@dataclass(frozen=True)
class PagedTile:
    """``queries`` x ``keys`` of one step, ``warps`` of a program, ``stages`` of loads in flight and ``HOPS`` more."""

    queries: int
    keys: int
    warps: int
    stages: int
    reason: str


HOPS = 2  # steps in which a page's number travels before its keys do: without them every step waits for its own


def choose(head_dim: int, wide: bool, local: bool = False, device: torch.device | None = None) -> PagedTile:
    """The row for a head dimension; ``wide`` is float32, ``local`` a window or capped scores, which need registers."""
    if _triton.small_tiles():
        return INTERPRETED
    plain, capped = (WIDE, LOCAL_WIDE) if wide else _device.fitting(TABLES, device)
    return _rows.choose(capped if local else plain, head_dim)


INTERPRETED = PagedTile(
    queries=32, keys=32, warps=4, stages=1, reason="short tests cross the borders of blocks and pages"
)
# None of these is timed: they are what bench.sm90 shows without spills and with a step's loads under way before it.
HALF = (
    (64, PagedTile(128, 64, 8, 3, "as attention's forward")),
    (128, PagedTile(128, 64, 8, 3, "156 registers; with 128 keys no load is ahead, and those of an FP8 cache spill")),
    (256, PagedTile(128, 32, 8, 2, "as attention's forward")),
)
LOCAL = (*HALF[:2], (256, PagedTile(128, 16, 8, 2, "as attention's forward")))
# The wide heads of HALF ask for 104 KB, more than the 99 KB of some devices.
HALF_SMALL = (*HALF[:2], (256, PagedTile(64, 16, 8, 2, "what fits 99 KB")))
TABLES = ((163, (HALF, LOCAL)), (0, (HALF_SMALL, HALF_SMALL)))  # by the KB of shared memory of a block
FMA = "float32 without tensor cores, for its accuracy"
WIDE = (
    (64, PagedTile(32, 32, 4, 1, FMA)),
    (128, PagedTile(32, 32, 8, 1, FMA)),
    (256, PagedTile(32, 16, 8, 1, FMA)),
)
LOCAL_WIDE = (
    (64, PagedTile(32, 16, 4, 1, "32 keys spill")),
    WIDE[1],
    (256, PagedTile(16, 16, 8, 1, "32 queries spill")),
)
