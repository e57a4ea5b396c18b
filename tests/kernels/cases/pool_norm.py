from dataclasses import replace

import torch

from tests.kernels.harness import ALL, BF16, HALF, Case


class Turned(Case):
    """Its inputs ``window`` and ``frame`` go into ``rote``."""

    def call(self, inputs, impl):
        index = {name: inputs[name] for name in ("window", "frame")}
        rest = {name: x for name, x in inputs.items() if name not in index}
        turned = replace(self, options=self.options | {"rote": index | self.options.get("rote", {})})
        return super(Turned, turned).call(rest, impl)


def inputs(g: torch.Generator, frames: int, width: int = 48, batch: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    weight, bias = torch.randn(2, width, generator=g, dtype=torch.float64)
    x = torch.randn(*batch, frames, width, generator=g, dtype=torch.float64) + 2
    return {"x": x, "weight": weight, "bias": bias}


LENGTHS = (20, 1, 0, 33, 9)  # 10 + 0 + 0 + 16 + 4 pairs of 63 frames


def packed(g, frames, lengths=LENGTHS, width=48):
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return inputs(g, int(cu[-1]), width) | {"cu_seqlens": cu}


def turned(g, made: dict[str, torch.Tensor], *rows: int):
    """Frames anywhere in 30 minutes."""
    window, frame = (torch.randint(0, n, rows, generator=g) for n in (60, 750))
    return made | {"window": window, "frame": frame}


def alone(g, n, width=48):
    return turned(g, inputs(g, n, width), n // 2)


SHORT = (9, 1, 0, 6)
ACCURATE = {"rote": {"phase_dtype": torch.float64}}
EVERYTHING = {"rote": {"rotary_dim": 13, "theta": 190.986, "window_factor": 6.283185307179586}}
WRT = ("x", "weight", "bias")
WEIGHTS = {"weight": 3**-0.5, "bias": 3**-0.5}  # as for layer_norm
MIXED = {"keep": ("weight", "bias"), "dtypes": (BF16, HALF)}
CASES = [
    Case("pool_norm", "one odd sequence", inputs, WRT, dtypes=ALL, weights=WEIGHTS, summed=31, far=("x",)),
    Case("pool_norm", "batch", lambda g, n: inputs(g, n, 48, (2, 3)), WRT, size=7, weights=WEIGHTS, summed=18),
    Case("pool_norm", "one frame", inputs, WRT, size=1),
    Case("pool_norm", "float32 parameters", inputs, WRT, size=9, weights=WEIGHTS, summed=4, **MIXED),
    Case("pool_norm", "no frames", inputs, WRT, size=0),
    Case("pool_norm", "packed", packed, WRT, {"total": 30}, weights=WEIGHTS, summed=30, far=("x",)),
    Case("pool_norm", "packed, total unknown", packed, WRT, weights=WEIGHTS, summed=30),
    Case("pool_norm", "packed, odd width", lambda g, n: packed(g, n, (5, 8), 37), WRT, {"total": 6}, summed=6),
    Case("pool_norm", "nothing to pool", lambda g, n: packed(g, n, (1, 0, 1)), WRT, {"total": 0}),
    Case("pool_norm", "no sequences", lambda g, n: packed(g, n, ()), WRT, {"total": 0}),
    Turned("pool_norm", "turned", alone, WRT, size=15, weights=WEIGHTS, summed=7, far=("x",)),
    Turned("pool_norm", "turned batch", lambda g, n: turned(g, inputs(g, n, 37, (2, 2)), 2, 2, n // 2), WRT, size=5),
    Turned("pool_norm", "turned, packed", lambda g, n: turned(g, packed(g, n, SHORT), 7), WRT, {"total": 7}),
    Turned("pool_norm", "turned, total unknown", lambda g, n: turned(g, packed(g, n, SHORT), 7), WRT, ACCURATE),
    Turned("pool_norm", "turned, the encoder's width", lambda g, n: alone(g, n, 1280), WRT, size=9),
    Turned("pool_norm", "everything turned, odd pairs", lambda g, n: alone(g, n, 28), WRT, EVERYTHING, size=12),
    Turned("pool_norm", "turned, no rows", alone, WRT, size=1),
]
