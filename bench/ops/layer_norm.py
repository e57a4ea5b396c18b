"""layer_norm at the audio encoder's width, over 60 windows of 1,500 frames and one of them."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal

WIDTH = 1280


def inputs(rows: int, residual: bool, stream: torch.dtype | None = None):
    """``stream``: the dtype of parameters and residual, where it is not that of x."""

    def make(device: str, dtype: torch.dtype):
        wide = stream or dtype
        made = {
            "x": normal(rows, WIDTH, device=device, dtype=dtype),
            "weight": normal(WIDTH, device=device, dtype=wide),
            "bias": normal(WIDTH, device=device, dtype=wide),
        }
        return made | ({"residual": normal(rows, WIDTH, device=device, dtype=wide)} if residual else {})

    return make


def torchs(i):
    h = i["x"] + i["residual"] if "residual" in i else i["x"]
    y = F.layer_norm(h, (WIDTH,), i["weight"], i["bias"], 1e-5).to(i["x"].dtype)
    return (y, h) if "residual" in i else y


compiled = torch.compile(torchs, dynamic=True)


def ligers(i):
    try:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    except ImportError as error:
        raise Absent("liger-kernel is not installed") from error
    if "residual" in i:
        raise Absent("its layer_norm adds no residual")
    return LigerLayerNormFunction.apply(i["x"], i["weight"], i["bias"], 1e-5)


def workload(rows: int, residual: bool, stream: torch.dtype | None = None) -> Workload:
    row, wide = WIDTH * 2, WIDTH * (stream or torch.bfloat16).itemsize
    forward = rows * (2 * row + (2 * wide if residual else 0))  # read x (and the residual), write y (and h)
    # Read dy, h (and dh), write dx, and the residual's where it is another.
    backward = rows * (2 * row + wide + (wide * (2 if stream else 1) if residual else 0))
    words = " + float32 residual and parameters" if stream else " + residual" if residual else ""
    return Workload(
        "layer_norm",
        f"{rows} x {WIDTH}{words}",
        inputs(rows, residual, stream),
        ("x", "weight", "bias", *(("residual",) if residual else ())),
        (forward, backward),
        at=lambda rows: inputs(rows, residual, stream),
        peers={"torch": torchs, "torch.compile": compiled, "liger": ligers},
    )


WORKLOADS = [
    workload(90_000, False),
    workload(90_000, True),
    workload(1500, True),
    workload(90_000, True, torch.float32),
]
