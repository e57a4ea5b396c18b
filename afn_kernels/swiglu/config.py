"""Launch configurations of swiglu, by the width of a row."""

from dataclasses import dataclass

from afn_kernels import _rows


@dataclass(frozen=True)
class SwigluTile:
    """The tile of one program: ``rows`` x ``columns`` elements on ``warps`` warps."""

    rows: int
    columns: int
    warps: int
    reason: str


def choose(width: int) -> SwigluTile:
    """The tile for rows of ``width`` elements."""
    return _rows.choose(ROWS, width)


ROWS = (
    (64, SwigluTile(64, 64, 8, "the same 16 elements a thread on narrow rows; not timed")),
    (2**62, SwigluTile(8, 512, 8, "16 elements a thread, two 16-byte loads per tensor; 512 divides 18944; not timed")),
)
