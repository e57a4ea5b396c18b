"""Launch configurations of attention, by kernel, precision and head dimension."""

from dataclasses import dataclass

from afn_kernels import _triton


@dataclass(frozen=True)
class Config:
    """``queries`` x ``keys`` of one step, ``warps`` of a program, ``stages`` of loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int
    reason: str


def choose(kernel: str, head_dim: int, wide: bool) -> Config:
    """The row of a kernel ("forward", "dq" or "dkv") for a head dimension; ``wide`` is float32."""
    if _triton.interpreted():
        return INTERPRETED[kernel]
    return next(config for limit, config in (WIDE if wide else HALF)[kernel] if head_dim <= limit)


SMALL = "short tests cross the borders of blocks"
INTERPRETED = {
    "forward": Config(queries=32, keys=16, warps=4, stages=1, reason=SMALL),
    "dq": Config(queries=32, keys=16, warps=4, stages=1, reason=SMALL),
    "dkv": Config(queries=16, keys=32, warps=4, stages=1, reason=SMALL),
}
HALF = {
    "forward": (
        (64, Config(queries=128, keys=128, warps=8, stages=2, reason="by register count, not timed")),
        (128, Config(queries=128, keys=128, warps=8, stages=2, reason="by register count, not timed")),
        (256, Config(queries=128, keys=64, warps=8, stages=2, reason="by register count, not timed")),
    ),
    "dq": (
        (64, Config(queries=128, keys=128, warps=8, stages=2, reason="by register count, not timed")),
        (128, Config(queries=128, keys=64, warps=8, stages=2, reason="by register count, not timed")),
        (256, Config(queries=64, keys=64, warps=8, stages=1, reason="by register count, not timed")),
    ),
    "dkv": (
        (64, Config(queries=64, keys=128, warps=8, stages=2, reason="by register count, not timed")),
        (128, Config(queries=64, keys=128, warps=8, stages=2, reason="by register count, not timed")),
        (256, Config(queries=32, keys=64, warps=8, stages=1, reason="by register count, not timed")),
    ),
}
FMA = "multiplied without tensor cores, to keep float32's accuracy; not timed"
WIDE = {
    "forward": ((64, Config(64, 32, 4, 1, FMA)), (128, Config(32, 32, 4, 1, FMA)), (256, Config(16, 32, 4, 1, FMA))),
    "dq": ((64, Config(32, 32, 4, 1, FMA)), (128, Config(32, 32, 8, 1, FMA)), (256, Config(16, 16, 8, 1, FMA))),
    "dkv": ((64, Config(32, 32, 4, 1, FMA)), (128, Config(32, 32, 8, 1, FMA)), (256, Config(16, 16, 8, 1, FMA))),
}
