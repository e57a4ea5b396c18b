"""Launch configurations of quantize_fp8."""

from dataclasses import dataclass

from afn_kernels import _rows


@dataclass(frozen=True)
class Fp8Launch:
    """``warps`` per program and why."""

    warps: int
    reason: str


def choose(width: int) -> Fp8Launch:
    """The row for a program per row of ``width`` elements."""
    return _rows.choose(ROWS, width)


ROWS = (
    (1024, Fp8Launch(warps=4, reason="8 elements a thread: one 16-byte load; by register count, not timed")),
    (4096, Fp8Launch(warps=8, reason="16 a thread at 3584; by register count, not timed")),
    (8192, Fp8Launch(warps=16, reason="16 a thread; by register count, not timed")),
    (32768, Fp8Launch(warps=32, reason="24 a thread at 18944; by register count, not timed")),
    (65536, Fp8Launch(warps=32, reason="the widest program; by register count, not timed")),
)
TILE = Fp8Launch(
    warps=8, reason="128 x 128: two programs fit, with a fifth fewer instructions than 16 warps; not timed"
)
