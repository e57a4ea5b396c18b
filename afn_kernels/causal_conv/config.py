"""Launch configurations of causal_conv, by the number of channels."""

from dataclasses import dataclass

from afn_kernels import _rows


@dataclass(frozen=True)
class ConvTile:
    """The tile of one program, ``frames`` x ``channels`` elements on ``warps`` warps.

    ``back``: frames of a step of the backward, whose programs walk; ``waves`` of them per multiprocessor.
    """

    frames: int
    channels: int
    warps: int
    back: int
    waves: int
    reason: str


def choose(channels: int, small: bool) -> ConvTile:
    """The tile for rows of ``channels`` elements."""
    return INTERPRETED if small else _rows.choose(ROWS, channels)


ROWS = (
    (64, ConvTile(32, 64, 4, 16, 3, "16 elements a thread on narrow rows; not timed")),
    (
        2**62,
        ConvTile(16, 128, 4, 8, 4, "16 elements a thread, and 8 in the backward, where 16 spill; 128 divides 384"),
    ),
)
INTERPRETED = ConvTile(32, 32, 4, 32, 1, "borders that short tests cross; a program costs milliseconds")
