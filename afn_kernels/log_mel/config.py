"""Launch configurations of log_mel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LogMelTile:
    """``frames`` and ``warps`` of a program; ``piece`` columns of a folded operand and ``chunk`` elements at a time."""

    frames: int
    warps: int
    piece: int
    chunk: int
    reason: str


def choose(small: bool) -> LogMelTile:
    return INTERPRETED if small else GPU


GPU = LogMelTile(
    frames=128,
    warps=8,
    piece=32,
    chunk=4096,
    reason="no spills; 64 frames read the matrices twice as often, pieces of 16 wait twice as often; not timed",
)
INTERPRETED = LogMelTile(256, 8, piece=64, chunk=65536, reason="a program costs milliseconds whatever its size")
