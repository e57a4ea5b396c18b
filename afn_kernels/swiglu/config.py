"""Launch configurations of swiglu, by the width of a row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """The tile of one program: ``rows`` x ``columns`` elements on ``warps`` warps."""

    rows: int
    columns: int
    warps: int
    reason: str


def choose(width: int) -> Config:
    """The tile for rows of ``width`` elements."""
    return next(config for limit, config in ROWS if width <= limit)


ROWS = (
    (64, Config(64, 64, 8, "the same 16 elements a thread on narrow rows; not timed")),
    (2**62, Config(8, 512, 8, "16 elements a thread, two 16-byte loads per tensor; 512 divides 18944; not timed")),
)
