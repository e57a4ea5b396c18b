import torch

from tests.kernels.harness import Case


def inputs(g: torch.Generator, frames: int, width: int = 48, batch: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    weight, bias = torch.randn(2, width, generator=g, dtype=torch.float64)
    x = torch.randn(*batch, frames, width, generator=g, dtype=torch.float64) + 2
    return {"x": x, "weight": weight, "bias": bias}


LENGTHS = (20, 1, 0, 33, 9)  # 10 + 0 + 0 + 16 + 4 pairs of 63 frames


def packed(g, frames, lengths=LENGTHS, width=48):
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return inputs(g, int(cu[-1]), width) | {"cu_seqlens": cu}


WRT = ("x", "weight", "bias")
WEIGHTS = {"weight": 3**-0.5, "bias": 3**-0.5}  # as for layer_norm
CASES = [
    Case("pool_norm", "one odd sequence", inputs, WRT, weights=WEIGHTS, summed=31, far=("x",)),
    Case("pool_norm", "batch", lambda g, n: inputs(g, n, 48, (2, 3)), WRT, size=7, weights=WEIGHTS, summed=18),
    Case("pool_norm", "one frame", inputs, WRT, size=1),
    Case("pool_norm", "no frames", inputs, WRT, size=0),
    Case("pool_norm", "packed", packed, WRT, {"total": 30}, weights=WEIGHTS, summed=30, far=("x",)),
    Case("pool_norm", "packed, total unknown", packed, WRT, weights=WEIGHTS, summed=30),
    Case("pool_norm", "packed, odd width", lambda g, n: packed(g, n, (5, 8), 37), WRT, {"total": 6}, summed=6),
    Case("pool_norm", "nothing to pool", lambda g, n: packed(g, n, (1, 0, 1)), WRT, {"total": 0}),
    Case("pool_norm", "no sequences", lambda g, n: packed(g, n, ()), WRT, {"total": 0}),
]
