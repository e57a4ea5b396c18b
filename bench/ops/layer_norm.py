"""layer_norm at the audio encoder's width, over 60 windows of 1,500 frames and one of them."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal, sized

WIDTH = 1280


def inputs(rows: int, width: int, residual: bool, stream: torch.dtype | None = None):
    """``stream``: the dtype of parameters and residual, where it is not that of x."""

    def make(device: str, dtype: torch.dtype):
        wide = stream or dtype
        made = {
            "x": normal(rows, width, device=device, dtype=dtype),
            "weight": normal(width, device=device, dtype=wide),
            "bias": normal(width, device=device, dtype=wide),
        }
        return made | ({"residual": normal(rows, width, device=device, dtype=wide)} if residual else {})

    return make


def torchs(i):
    h = i["x"] + i["residual"] if "residual" in i else i["x"]
    y = F.layer_norm(h, h.shape[-1:], i["weight"], i["bias"], 1e-5).to(i["x"].dtype)
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


@sized()
def workload(rows: int = 90_000, width: int = WIDTH, residual: bool = False, float32_stream: bool = False) -> Workload:
    stream = torch.float32 if float32_stream else None
    row, wide = width * 2, width * (stream or torch.bfloat16).itemsize
    forward = rows * (2 * row + (2 * wide if residual else 0))  # read x (and the residual), write y (and h)
    # Read dy, h (and dh), write dx, and the residual's where it is another.
    backward = rows * (2 * row + wide + (wide * (2 if stream else 1) if residual else 0))
    words = " + residual" if residual else ""
    if stream:
        words = f" + float32 {'residual and ' if residual else ''}parameters"
    return Workload(
        "layer_norm",
        f"{rows} x {width}{words}",
        inputs(rows, width, residual, stream),
        ("x", "weight", "bias", *(("residual",) if residual else ())),
        (forward, backward),
        peers={"torch": torchs, "torch.compile": compiled, "liger": ligers},
    )


WORKLOADS = [
    workload(90_000),
    workload(90_000, residual=True),
    workload(1500, residual=True),
    workload(90_000, residual=True, float32_stream=True),
]
