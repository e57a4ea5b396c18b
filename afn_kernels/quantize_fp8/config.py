"""Launch configurations of quantize_fp8."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """``warps`` per program and why."""

    warps: int
    reason: str


def choose(width: int) -> Config:
    """The row for a program per row of ``width`` elements."""
    return next(config for limit, config in ROWS if width <= limit)


ROWS = (
    (1024, Config(warps=4, reason="8 elements a thread: one 16-byte load; by register count, not timed")),
    (4096, Config(warps=8, reason="16 a thread at 3584; by register count, not timed")),
    (8192, Config(warps=16, reason="16 a thread; by register count, not timed")),
    (32768, Config(warps=32, reason="24 a thread at 18944; by register count, not timed")),
    (65536, Config(warps=32, reason="the widest program; by register count, not timed")),
)
TILE = Config(warps=16, reason="128 x 128, 32 elements a thread; by register count, not timed")
