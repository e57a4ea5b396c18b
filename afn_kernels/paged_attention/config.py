"""Launch configurations of paged_attention, by head dimension."""

from dataclasses import dataclass

from afn_kernels import _rows, _triton


@dataclass(frozen=True)
class PagedTile:
    """``queries`` x ``keys`` of one step, ``warps`` of a program, ``stages`` of loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int
    reason: str


def choose(head_dim: int, wide: bool, page: int) -> PagedTile:
    """The row for a head dimension; ``wide`` is float32."""
    if _triton.interpreted():
        return INTERPRETED
    return _rows.choose(WIDE if wide else HALF, head_dim)


INTERPRETED = PagedTile(queries=32, keys=32, warps=4, stages=1, reason="short tests cross the borders of blocks and pages")
HALF = (
    (64, PagedTile(128, 64, 8, 3, "as attention's forward")),
    (128, PagedTile(128, 64, 8, 3, "as attention's forward that carries on")),
    (256, PagedTile(128, 32, 8, 2, "as attention's forward")),
)
FMA = "float32 without tensor cores, for its accuracy"
WIDE = (
    (64, PagedTile(32, 32, 4, 1, FMA)),
    (128, PagedTile(32, 32, 8, 1, FMA)),
    (256, PagedTile(32, 16, 8, 1, FMA)),
)
