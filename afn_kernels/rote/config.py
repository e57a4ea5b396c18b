"""Launch configuration of rote: one for every shape."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RoteLaunch:
    """``rows`` a program turns with ``warps``."""

    rows: int
    warps: int
    reason: str


CONFIG = RoteLaunch(rows=4, warps=4, reason="16 elements a thread at 512 rotated dims; by register count, not timed")
