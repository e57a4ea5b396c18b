"""What one call costs on the host before a kernel starts, in microseconds: a launch that only allocates its output.

python -m bench.boundary [--out results.jsonl] [--rounds 20]
"""

import time

import torch

from afn_kernels._library import Boundary
from afn_kernels._registry import OPS, Impl, Op
from bench.measure import main

CALLS = 2000


def launch(x, eps):
    return x.new_empty(4)


def _call(x, *, eps):
    return BOUNDARY(x, eps)


BOUNDARY = Boundary(
    "bench_nothing(Tensor x, float eps) -> Tensor",
    f"{__name__}:launch",
    lambda x, eps: x.new_empty(4),
    setup_context=lambda ctx, inputs, output: None,
    backward=lambda ctx, grad: (grad, None),
)
OP = Op("bench_nothing", (Impl("triton", f"{__name__}:_call"), Impl("reference", f"{__name__}:_call")))
del OPS[OP.name]  # none of the library's


def calls() -> dict:
    x, y = torch.zeros(4), torch.zeros(4, requires_grad=True)
    return {
        "plain Python": lambda: launch(x, 1e-6),
        "eager": lambda: BOUNDARY(x, 1e-6),
        "eager, chosen by impl=auto": lambda: OP.choose("auto", x, eps=1e-6)(x, eps=1e-6),
        "eager with a gradient": lambda: BOUNDARY(y, 1e-6),
        "registered op": lambda: BOUNDARY.op(x, 1e-6),
        "registered op with a gradient": lambda: BOUNDARY.op(y, 1e-6),
    }


def measure(rounds: int, device: str) -> dict:
    """Best microseconds per call over the rounds."""
    best = dict.fromkeys(calls(), float("inf"))
    for _ in range(rounds):
        for name, call in calls().items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            best[name] = min(best[name], 1e6 * (time.perf_counter() - start) / CALLS)
    best = {name: round(value, 2) for name, value in best.items()}
    for name, value in best.items():
        print(f"{name:<34}{value:8.2f} µs")
    return {"benchmark": "boundary", "microseconds": best}


if __name__ == "__main__":
    main(__doc__, measure, rounds=20)
