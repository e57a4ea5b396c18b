"""swiglu at the language model's width, from two projections and from the halves of one."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal, sized
from bench.ops.quantize_fp8 import after

WIDTH = 18944


def inputs(rows: int, width: int, fused: bool):
    def make(device: str, dtype: torch.dtype):
        if fused:
            gate, up = normal(rows, 2 * width, device=device, dtype=dtype).chunk(2, -1)
        else:
            gate, up = (normal(rows, width, device=device, dtype=dtype) for _ in range(2))
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


@sized()
def workload(rows: int = 8192, width: int = WIDTH, fused: bool = False) -> Workload:
    tensor = rows * width * 2
    return Workload(
        "swiglu",
        f"{rows} x {width}{', halves of one tensor' if fused else ''}",
        inputs(rows, width, fused),
        ("gate", "up"),
        (3 * tensor, 5 * tensor),  # forward: two read, one written; backward: three read, two written
        peers={"torch": torchs, "torch.compile": compiled, "liger": ligers},
    )


@sized()
def quantised(rows: int = 8192, width: int = WIDTH, fp8: str | tuple[int, ...] = "row") -> Workload:
    eager = after(torchs, fp8)
    return Workload(
        "swiglu",
        f"{rows} x {width}, to FP8 by {fp8 if isinstance(fp8, str) else f'{fp8[0]} x {fp8[1]}'}",
        inputs(rows, width, True),
        (),
        (rows * width * 5.0, 0.0),  # read two, write codes
        options={"out_dtype": torch.float8_e4m3fn, "block": fp8},
        peers={"torch": eager, "torch.compile": torch.compile(eager, dynamic=True)},
    )


WORKLOADS = [
    workload(8192),
    workload(8192, fused=True),
    workload(45056),
    quantised(8192),
    quantised(8192, fp8=(1, 128)),
]
