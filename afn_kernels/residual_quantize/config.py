"""The launch configuration of residual_quantize."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeTile:
    """``rows`` against ``codes`` of a level at a time, ``part`` elements of both in a step, on ``warps`` warps."""

    rows: int
    codes: int
    part: int
    warps: int
    reason: str


def choose(small: bool) -> CodeTile:
    return INTERPRETED if small else GPU


GPU = CodeTile(
    rows=16,
    codes=128,
    part=16,
    warps=4,
    reason="a batch of clips has some thousand rows, a stream 1 to 16: few rows leave no multiprocessor idle; "
    "steps of 32 spill; not timed",
)
INTERPRETED = CodeTile(rows=32, codes=32, part=16, warps=4, reason="borders that short tests cross")
