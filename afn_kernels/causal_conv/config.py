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


def choose(channels: int) -> ConvTile:
    """The tile for rows of ``channels`` elements."""
    return _rows.choose(ROWS, channels)


ROWS = (
    (64, ConvTile(64, 64, 4, 32, 4, "32 elements a thread on narrow rows; not timed")),
    (2**62, ConvTile(32, 128, 4, 32, 4, "32 elements a thread; 128 divides 384, 768 and 1536; not timed")),
)
