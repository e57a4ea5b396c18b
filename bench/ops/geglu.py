"""geglu at the width of Gemma 2 9B, exact and by tanh."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal, sized

WIDTH = 14336


def inputs(rows: int, width: int):
    def make(device: str, dtype: torch.dtype):
        return {name: normal(rows, width, device=device, dtype=dtype) for name in ("gate", "up")}

    return make


def torchs(approximate: str):
    return lambda i: F.gelu(i["gate"], approximate=approximate) * i["up"]


def ligers(i):
    try:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
    except ImportError as error:
        raise Absent("liger-kernel is not installed") from error
    return LigerGELUMulFunction.apply(i["gate"], i["up"])


@sized()
def workload(rows: int = 8192, width: int = WIDTH, tanh: bool = False) -> Workload:
    tensor = rows * width * 2
    approximate = "tanh" if tanh else "none"
    plain = torchs(approximate)
    peers = {"torch": plain, "torch.compile": torch.compile(plain, dynamic=True)}
    return Workload(
        "geglu",
        f"{rows} x {width}{', tanh' if tanh else ''}",
        inputs(rows, width),
        ("gate", "up"),
        (3 * tensor, 5 * tensor),  # forward: two read, one written; backward: three read, two written
        options={"approximate": approximate},
        peers=peers | ({"liger": ligers} if tanh else {}),
    )


WORKLOADS = [workload(8192), workload(8192, tanh=True)]
