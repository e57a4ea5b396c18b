"""rms_norm at the language model's width, over 8K tokens of training and one 45K prefill."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal, sized

WIDTH = 3584


def inputs(rows: int, width: int, residual: bool):
    def make(device: str, dtype: torch.dtype):
        made = {
            "x": normal(rows, width, device=device, dtype=dtype),
            "weight": normal(width, device=device, dtype=dtype),
        }
        return made | ({"residual": normal(rows, width, device=device, dtype=dtype)} if residual else {})

    return make


def torchs(i):
    h = i["x"] + i["residual"] if "residual" in i else i["x"]
    y = F.rms_norm(h, h.shape[-1:], i["weight"], 1e-6)
    return (y, h) if "residual" in i else y


compiled = torch.compile(torchs, dynamic=True)


def ligers(i):
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    except ImportError as error:
        raise Absent("liger-kernel is not installed") from error
    if "residual" in i:
        raise Absent("its rms_norm adds no residual")
    return LigerRMSNormFunction.apply(i["x"], i["weight"], 1e-6, 0.0, "llama", False)


@sized()
def workload(rows: int = 8192, width: int = WIDTH, residual: bool = False) -> Workload:
    tensor = rows * width * 2
    forward = tensor * (4 if residual else 2)  # read x (and the residual), write y (and h)
    backward = tensor * (4 if residual else 3)  # read dy, h (and dh), write dx
    return Workload(
        "rms_norm",
        f"{rows} x {width}{' + residual' if residual else ''}",
        inputs(rows, width, residual),
        ("x", "weight", "residual") if residual else ("x", "weight"),
        (forward, backward),
        peers={"torch": torchs, "torch.compile": compiled, "liger": ligers},
    )


WORKLOADS = [workload(8192), workload(8192, residual=True), workload(45056, residual=True)]
