"""Launch configurations of bias_gelu, by the width of a row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """The tile of one program, ``rows`` x ``columns`` elements on ``warps`` warps.

    ``waves``: persistent programs per multiprocessor in the backward, where the bias gradient stays in registers.
    """

    rows: int
    columns: int
    warps: int
    waves: int
    reason: str


def choose(width: int) -> Config:
    """The tile for rows of ``width`` elements."""
    return next(config for limit, config in ROWS if width <= limit)


ROWS = (
    (64, Config(64, 64, 8, 3, "the same 16 elements a thread on narrow rows; not timed")),
    (2**62, Config(8, 512, 8, 3, "16 elements a thread; 512 divides 3584 and 5120; 3 programs fit; not timed")),
)
