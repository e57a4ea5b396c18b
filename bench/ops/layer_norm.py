"""layer_norm at the audio encoder's width, over 60 windows of 1,500 frames and one of them."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal

WIDTH = 1280


def inputs(rows: int, residual: bool):
    def make(device: str, dtype: torch.dtype):
        made = {
            "x": normal(rows, WIDTH, device=device, dtype=dtype),
            "weight": normal(WIDTH, device=device, dtype=dtype),
            "bias": normal(WIDTH, device=device, dtype=dtype),
        }
        return made | ({"residual": normal(rows, WIDTH, device=device, dtype=dtype)} if residual else {})

    return make


def torchs(i):
    h = i["x"] + i["residual"] if "residual" in i else i["x"]
    y = F.layer_norm(h, (WIDTH,), i["weight"], i["bias"], 1e-5)
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


def workload(rows: int, residual: bool) -> Workload:
    tensor = rows * WIDTH * 2
    forward = tensor * (4 if residual else 2)  # read x (and the residual), write y (and h)
    backward = tensor * (4 if residual else 3)  # read dy, h (and dh), write dx
    return Workload(
        "layer_norm",
        f"{rows} x {WIDTH}{' + residual' if residual else ''}",
        inputs(rows, residual),
        ("x", "weight", "bias", *(("residual",) if residual else ())),
        (forward, backward),
        at=lambda rows: inputs(rows, residual),
        peers={"torch": torchs, "torch.compile": compiled, "liger": ligers},
    )


WORKLOADS = [workload(90_000, False), workload(90_000, True), workload(1500, True)]
