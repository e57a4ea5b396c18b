"""Launch configuration of rotary: one for every shape, spread wider where there are few tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RotaryLaunch:
    """``heads`` a program turns at a time with ``warps``; below ``few`` tokens per multiprocessor heads are spread."""

    heads: int
    warps: int
    few: int
    reason: str


CONFIG = RotaryLaunch(
    heads=8,
    warps=1,
    few=8,
    reason="a warp per token: its angles serve every head, 64 bytes a thread in flight; by arithmetic, not timed",
)
