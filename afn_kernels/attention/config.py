"""Launch configurations of attention, by kernel, precision and head dimension."""

from dataclasses import dataclass

import torch

from afn_kernels import _device, _rows, _triton


@dataclass(frozen=True)
class AttnTile:
    """``queries`` x ``keys`` of one step, ``warps`` of a program, ``stages`` of loads in flight.

    ``lean`` saves registers at the price of instructions (``load_rows``).
    """

    queries: int
    keys: int
    warps: int
    stages: int
    reason: str
    lean: bool = False


def choose(kernel: str, head_dim: int, wide: bool, local: bool = False, device: torch.device | None = None) -> AttnTile:
    """The row of a kernel ("forward", "carry", a forward that continues, "dq" or "dkv") for a head dimension.

    ``wide`` is float32. ``local`` is a window or capped scores, which need registers: such a row has the tile of the
    other one where a schedule counts it (queries, keys of "dkv"), so that one table serves both.
    """
    if _triton.small_tiles():
        return INTERPRETED[kernel]
    return _rows.choose(_device.fitting(TABLES, device)[wide, local][kernel], head_dim)


# Queries of a tile of csrc/cuda/attention.cu, by head dimension: 64 for each warpgroup that multiplies.
CUDA_QUERIES = {64: 192, 128: 128}
CUDA_KEYS = 128  # of a tile of csrc/cuda/attention_backward.cu

SMALL = "short tests cross the borders of blocks"
INTERPRETED = {
    "forward": AttnTile(queries=32, keys=16, warps=4, stages=1, reason=SMALL),
    "carry": AttnTile(queries=32, keys=16, warps=4, stages=1, reason=SMALL),
    "dq": AttnTile(queries=32, keys=16, warps=4, stages=1, reason=SMALL),
    "dkv": AttnTile(queries=16, keys=32, warps=4, stages=1, reason=SMALL),
}
# None of these is timed: they are what bench.sm90 shows without spills. A block of 128 rows keeps the traffic to L2
# below 4 TB/s at 500 TFLOP/s.
HALF = {
    "forward": (
        (
            64,
            AttnTile(
                128, 64, 4, 3, "197 registers: two programs on a multiprocessor, one computes as one exponentiates"
            ),
        ),
        (128, AttnTile(128, 128, 8, 3, "250 registers and 224 KB: the next step's loads in flight")),
        (256, AttnTile(128, 32, 8, 2, "64 keys spill")),
    ),
    "carry": (
        (64, AttnTile(128, 64, 4, 3, "as the forward")),
        (128, AttnTile(128, 128, 8, 3, "247 registers; four warps would spill 6 words")),
        (256, AttnTile(128, 32, 8, 2, "as the forward")),
    ),
    "dq": (
        (64, AttnTile(128, 128, 8, 3, "233 registers, the next step's loads in flight")),
        (128, AttnTile(128, 64, 8, 3, "173 registers")),
        (256, AttnTile(128, 32, 8, 2, "64 queries or 64 keys spill")),
    ),
    "dkv": (
        (64, AttnTile(64, 128, 8, 3, "238 registers")),
        (128, AttnTile(64, 128, 8, 3, "255 registers, most of them dk and dv; without leanness 6 words spill", True)),
        (256, AttnTile(16, 64, 8, 2, "32 queries spill")),
    ),
}
LOCAL = {
    "forward": (
        (64, AttnTile(128, 64, 8, 3, "as without")),
        (128, AttnTile(128, 64, 8, 3, "128 keys spill")),
        (256, AttnTile(128, 16, 8, 2, "32 keys spill")),
    ),
    "carry": (
        (64, AttnTile(128, 64, 8, 3, "as the forward")),
        (128, AttnTile(128, 64, 8, 3, "as the forward")),
        (256, AttnTile(128, 16, 8, 2, "as the forward")),
    ),
    "dq": (
        (64, AttnTile(128, 64, 8, 3, "182 registers")),
        (128, AttnTile(128, 64, 8, 3, "as without")),
        (256, AttnTile(128, 16, 8, 3, "32 keys spill, and so do one stage and two")),
    ),
    "dkv": (
        (64, AttnTile(64, 128, 8, 2, "as without")),
        (128, AttnTile(32, 128, 8, 2, "64 queries spill")),
        (256, AttnTile(16, 64, 8, 2, "as without")),
    ),
}
FMA = "float32 without tensor cores, for its accuracy; the largest step found without spills"
WIDE = {
    "forward": (
        (64, AttnTile(32, 32, 4, 1, FMA)),
        (128, AttnTile(32, 32, 8, 1, FMA)),
        (256, AttnTile(32, 16, 8, 1, FMA)),
    ),
    "carry": (
        (64, AttnTile(32, 16, 4, 1, FMA)),
        (128, AttnTile(32, 16, 8, 2, "one stage spills")),
        (256, AttnTile(16, 16, 8, 2, "one stage spills")),
    ),
    "dq": ((64, AttnTile(32, 32, 4, 1, FMA)), (128, AttnTile(32, 16, 8, 1, FMA)), (256, AttnTile(16, 16, 8, 1, FMA))),
    "dkv": ((64, AttnTile(32, 32, 8, 1, FMA)), (128, AttnTile(16, 32, 8, 1, FMA)), (256, AttnTile(16, 16, 8, 1, FMA))),
}
LOCAL_WIDE = WIDE | {"forward": (*WIDE["forward"][:2], (256, AttnTile(32, 16, 16, 1, "8 warps spill")))}
# Where matrix instructions take their operands from registers (before Hopper, and GeForce after it), and a block has as
# little as 99 KB of shared memory: what python -m bench.capabilities shows without spills.
HALF_SMALL = {
    "forward": (
        (64, AttnTile(128, 64, 8, 3, "185 registers")),
        (128, AttnTile(128, 32, 8, 3, "216 registers, 64 KB; 64 keys spill")),
        (256, AttnTile(64, 32, 8, 2, "235 registers, 68 KB")),
    ),
    "carry": (
        (64, AttnTile(128, 64, 8, 3, "215 registers")),
        (128, AttnTile(128, 32, 8, 3, "240 registers, 64 KB")),
        (256, AttnTile(64, 32, 8, 2, "254 registers, 68 KB")),
    ),
    "dq": (
        (64, AttnTile(128, 32, 8, 3, "173 registers; 64 keys spill for sm_89")),
        (128, AttnTile(128, 32, 8, 3, "245 registers, 96 KB")),
        (256, AttnTile(32, 32, 8, 2, "161 registers, 66 KB")),
    ),
    "dkv": (
        (64, AttnTile(16, 64, 4, 3, "226 registers; 32 queries spill for sm_89, but in one stage")),
        (128, AttnTile(64, 64, 8, 2, "232 registers, 72 KB")),
        (256, AttnTile(32, 32, 8, 1, "182 registers, 80 KB")),
    ),
}
LOCAL_SMALL = {
    "forward": (
        (64, AttnTile(128, 64, 8, 3, "199 registers")),
        (128, AttnTile(128, 32, 8, 3, "203 registers")),
        (256, AttnTile(64, 16, 8, 2, "243 registers")),
    ),
    "carry": HALF_SMALL["carry"],
    "dq": (
        (64, AttnTile(128, 32, 8, 3, "178 registers; 64 keys spill")),
        (128, AttnTile(128, 32, 8, 3, "254 registers, 96 KB")),
        (256, AttnTile(32, 32, 8, 2, "168 registers, 66 KB")),
    ),
    "dkv": (
        (64, AttnTile(16, 64, 4, 3, "232 registers; 32 queries spill for sm_89")),
        (128, AttnTile(32, 64, 8, 2, "234 registers, 52 KB")),
        (256, AttnTile(32, 32, 8, 1, "190 registers, 80 KB")),
    ),
}
# By the shared memory that a device gives to a block: whether float32, and whether a window or capped scores.
TABLES = (
    (227, {(False, False): HALF, (False, True): LOCAL, (True, False): WIDE, (True, True): LOCAL_WIDE}),
    (0, {(False, False): HALF_SMALL, (False, True): LOCAL_SMALL, (True, False): WIDE, (True, True): LOCAL_WIDE}),
)
