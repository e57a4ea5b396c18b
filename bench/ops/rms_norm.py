"""rms_norm at the language model's width, over 8K tokens of training and one 45K prefill; also as Gemma has it."""

from functools import partial

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal

WIDTH = 3584


def inputs(rows: int, residual: bool, stream: torch.dtype | None = None):
    """``stream``: the dtype of weight and residual, where it is not that of x."""

    def make(device: str, dtype: torch.dtype):
        wide = stream or dtype
        made = {
            "x": normal(rows, WIDTH, device=device, dtype=dtype),
            "weight": normal(WIDTH, device=device, dtype=wide),
        }
        return made | ({"residual": normal(rows, WIDTH, device=device, dtype=wide)} if residual else {})

    return make


def torchs(i):
    h = i["x"] + i["residual"] if "residual" in i else i["x"]
    y = F.rms_norm(h, (WIDTH,), i["weight"], 1e-6).to(i["x"].dtype)
    return (y, h) if "residual" in i else y


def gemmas(i):
    wide = i["x"].to(torch.promote_types(i["x"].dtype, torch.float32))
    y = F.rms_norm(wide, (WIDTH,), 1 + i["weight"].to(wide.dtype), 1e-6)
    return y.to(i["x"].dtype)


def ligers(i, offset: float = 0.0, casting: str = "llama"):
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    except ImportError as error:
        raise Absent("liger-kernel is not installed") from error
    if "residual" in i:
        raise Absent("its rms_norm adds no residual")
    return LigerRMSNormFunction.apply(i["x"], i["weight"], 1e-6, offset, casting, False)


def peers(plain, ligers) -> dict:
    return {"torch": plain, "torch.compile": torch.compile(plain, dynamic=True), "liger": ligers}


LLAMA = peers(torchs, ligers)
GEMMA = peers(gemmas, partial(ligers, offset=1.0, casting="gemma"))


def workload(rows: int, residual: bool, stream: torch.dtype | None = None, offset: float | None = None) -> Workload:
    row, wide = WIDTH * 2, WIDTH * (stream or torch.bfloat16).itemsize
    forward = rows * (2 * row + (2 * wide if residual else 0))  # read x (and the residual), write y (and h)
    # Read dy, h (and dh), write dx, and the residual's where it is another.
    backward = rows * (2 * row + wide + (wide * (2 if stream else 1) if residual else 0))
    words = " + float32 residual and weight" if stream else " + residual" if residual else ""
    return Workload(
        "rms_norm",
        f"{rows} x {WIDTH}{words}{'' if offset is None else f', offset {offset}'}",
        inputs(rows, residual, stream),
        ("x", "weight", "residual") if residual else ("x", "weight"),
        (forward, backward),
        options={"offset": offset},
        at=lambda rows: inputs(rows, residual, stream),
        peers=LLAMA if offset is None else GEMMA,
    )


WORKLOADS = [
    workload(8192, False),
    workload(8192, True),
    workload(45056, True),
    workload(8192, True, torch.float32),
    workload(8192, False, offset=1.0),
]
