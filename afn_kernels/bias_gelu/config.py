"""Launch configurations of bias_gelu, by the width of a row."""

from dataclasses import dataclass

from afn_kernels import _rows


@dataclass(frozen=True)
class GeluTile:
    """The tile of one program, ``rows`` x ``columns`` elements on ``warps`` warps.

    ``waves``: persistent programs per multiprocessor in the backward, where the bias gradient stays in registers.
    """

    rows: int
    columns: int
    warps: int
    waves: int
    reason: str


def choose(width: int) -> GeluTile:
    """The tile for rows of ``width`` elements."""
    return _rows.choose(ROWS, width)


ROWS = (
    (64, GeluTile(64, 64, 8, 3, "the same 16 elements a thread on narrow rows; not timed")),
    (2**62, GeluTile(8, 512, 8, 3, "16 elements a thread; 512 divides 3584 and 5120; 3 programs fit; not timed")),
)
