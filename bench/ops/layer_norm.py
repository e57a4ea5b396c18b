"""layer_norm at the audio encoder's width, over 60 windows of 1,500 frames and one of them."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal, sized

WIDTH = 1280


def inputs(rows: int, width: int, residual: bool):
    def make(device: str, dtype: torch.dtype):
        made = {
            "x": normal(rows, width, device=device, dtype=dtype),
            "weight": normal(width, device=device, dtype=dtype),
            "bias": normal(width, device=device, dtype=dtype),
        }
        return made | ({"residual": normal(rows, width, device=device, dtype=dtype)} if residual else {})

    return make


def torchs(i):
    h = i["x"] + i["residual"] if "residual" in i else i["x"]
    y = F.layer_norm(h, h.shape[-1:], i["weight"], i["bias"], 1e-5)
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
def workload(rows: int = 90000, width: int = WIDTH, residual: bool = False) -> Workload:
    tensor = rows * width * 2
    forward = tensor * (4 if residual else 2)  # read x (and the residual), write y (and h)
    backward = tensor * (4 if residual else 3)  # read dy, h (and dh), write dx
    return Workload(
        "layer_norm",
        f"{rows} x {width}{' + residual' if residual else ''}",
        inputs(rows, width, residual),
        ("x", "weight", "bias", *(("residual",) if residual else ())),
        (forward, backward),
        peers={"torch": torchs, "torch.compile": compiled, "liger": ligers},
    )


WORKLOADS = [workload(90_000), workload(90_000, residual=True), workload(1500, residual=True)]
