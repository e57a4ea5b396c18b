"""Launch configurations of log_mel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """``frames`` and ``warps`` of a program; ``clamp`` elements at a time in the last pass over a row."""

    frames: int
    warps: int
    clamp: int
    reason: str


def choose(interpreted: bool) -> Config:
    return INTERPRETED if interpreted else GPU


GPU = Config(frames=128, warps=8, clamp=4096, reason="by register count; not timed")
INTERPRETED = Config(frames=256, warps=8, clamp=65536, reason="a program costs milliseconds whatever its size")
