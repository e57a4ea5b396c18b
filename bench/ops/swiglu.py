"""swiglu at the language model's width, from two projections and from the halves of one."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal

WIDTH = 18944


def inputs(rows: int, fused: bool):
    def make(device: str, dtype: torch.dtype):
        if fused:
            gate, up = normal(rows, 2 * WIDTH, device=device, dtype=dtype).chunk(2, -1)
        else:
            gate, up = (normal(rows, WIDTH, device=device, dtype=dtype) for _ in range(2))
        return {"gate": gate, "up": up}

    return make


def torchs(i):
    return F.silu(i["gate"]) * i["up"]


compiled = torch.compile(torchs, dynamic=True)


def ligers(i):
    try:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError as error:
        raise Absent("liger-kernel is not installed") from error
    return LigerSiLUMulFunction.apply(i["gate"], i["up"])


def workload(rows: int, fused: bool = False) -> Workload:
    tensor = rows * WIDTH * 2
    return Workload(
        "swiglu",
        f"{rows} x {WIDTH}{', halves of one tensor' if fused else ''}",
        inputs(rows, fused),
        ("gate", "up"),
        (3 * tensor, 5 * tensor),  # forward: two read, one written; backward: three read, two written
        at=lambda rows: inputs(rows, fused),
        peers={"torch": torchs, "torch.compile": compiled, "liger": ligers},
    )


WORKLOADS = [workload(8192), workload(8192, fused=True), workload(45056)]
