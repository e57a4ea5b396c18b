"""rms_norm at the language model's width, over 8K tokens of training and one 45K prefill; also as Gemma has it."""

from functools import partial

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal, sized
from bench.ops.quantize_fp8 import after

WIDTH = 3584


def inputs(rows: int, width: int, residual: bool, stream: torch.dtype | None = None):
    """``stream``: the dtype of weight and residual, where it is not that of x."""

    def make(device: str, dtype: torch.dtype):
        wide = stream or dtype
        made = {
            "x": normal(rows, width, device=device, dtype=dtype),
            "weight": normal(width, device=device, dtype=wide),
        }
        return made | ({"residual": normal(rows, width, device=device, dtype=wide)} if residual else {})

    return make


def torchs(i):
    h = i["x"] + i["residual"] if "residual" in i else i["x"]
    y = F.rms_norm(h, h.shape[-1:], i["weight"], 1e-6).to(i["x"].dtype)
    return (y, h) if "residual" in i else y


def gemmas(i):
    wide = i["x"].to(torch.promote_types(i["x"].dtype, torch.float32))
    y = F.rms_norm(wide, wide.shape[-1:], 1 + i["weight"].to(wide.dtype), 1e-6)
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


@sized()
def workload(
    rows: int = 8192, width: int = WIDTH, residual: bool = False, float32_stream: bool = False, gemma: bool = False
) -> Workload:
    stream = torch.float32 if float32_stream else None
    row, wide = width * 2, width * (stream or torch.bfloat16).itemsize
    forward = rows * (2 * row + (2 * wide if residual else 0))  # read x (and the residual), write y (and h)
    # Read dy, h (and dh), write dx, and the residual's where it is another.
    backward = rows * (2 * row + wide + (wide * (2 if stream else 1) if residual else 0))
    words = " + residual" if residual else ""
    if stream:
        words = f" + float32 {'residual and ' if residual else ''}weight"
    return Workload(
        "rms_norm",
        f"{rows} x {width}{words}{', offset 1.0' if gemma else ''}",
        inputs(rows, width, residual, stream),
        ("x", "weight", "residual") if residual else ("x", "weight"),
        (forward, backward),
        options={"offset": 1.0} if gemma else {},
        peers=GEMMA if gemma else LLAMA,
    )


@sized()
def quantised(rows: int = 8192, width: int = WIDTH, fp8: str | tuple[int, ...] = "row") -> Workload:
    eager = after(torchs, fp8)
    return Workload(
        "rms_norm",
        f"{rows} x {width} + residual, to FP8 by {fp8 if isinstance(fp8, str) else f'{fp8[0]} x {fp8[1]}'}",
        inputs(rows, width, True),
        (),
        (rows * width * 7.0, 0.0),  # read x and the residual, write codes and h
        options={"out_dtype": torch.float8_e4m3fn, "block": fp8},
        peers={"torch": eager, "torch.compile": torch.compile(eager, dynamic=True)},
    )


WORKLOADS = [
    workload(8192),
    workload(8192, residual=True),
    workload(45056, residual=True),
    workload(8192, residual=True, float32_stream=True),
    workload(8192, gemma=True),
    quantised(8192),
    quantised(8192, fp8=(1, 128)),
]
