"""bias_gelu in the audio encoder's feed-forward over 60 windows, and in the adaptor; once with GELU by tanh."""

from functools import partial

import torch
import torch.nn.functional as F

from bench.ops import Workload, normal, sized


def inputs(rows: int, width: int):
    def make(device: str, dtype: torch.dtype):
        return {
            "x": normal(rows, width, device=device, dtype=dtype),
            "bias": normal(width, device=device, dtype=dtype),
        }

    return make


def torchs(i, approximate: str = "none"):
    return F.gelu(i["x"] + i["bias"], approximate=approximate)


@sized()
def workload(rows: int = 90_000, width: int = 5120, tanh: bool = False) -> Workload:
    tensor = rows * width * 2
    approximate = "tanh" if tanh else "none"
    plain = partial(torchs, approximate=approximate)
    return Workload(
        "bias_gelu",
        f"{rows} x {width}{', tanh' if tanh else ''}",
        inputs(rows, width),
        ("x", "bias"),
        (2 * tensor, 3 * tensor),  # forward: read x, write y; backward: read dy and x, write dx
        options={"approximate": approximate},
        peers={"torch": plain, "torch.compile": torch.compile(plain, dynamic=True)},
    )


WORKLOADS = [workload(90_000, 5120), workload(1500, 5120), workload(45_000, 3584), workload(90_000, 5120, tanh=True)]
