import torch

from tests.kernels.harness import ALL, BF16, HALF, Case


def inputs(g: torch.Generator, rows: int, width: int = 48) -> dict[str, torch.Tensor]:
    """Rows around a mean of several deviations: a one-pass variance would cancel."""
    x, residual = torch.randn(2, rows, width, generator=g, dtype=torch.float64)
    weight, bias = torch.randn(2, width, generator=g, dtype=torch.float64)
    return {"x": x + 4, "weight": weight, "bias": bias, "residual": residual}


def plain(g, rows, width=48):
    return {name: x for name, x in inputs(g, rows, width).items() if name != "residual"}


def without(*names: str):
    return lambda g, rows: {name: x for name, x in inputs(g, rows).items() if name not in names}


MIXED = {"keep": ("weight", "bias", "residual"), "dtypes": (BF16, HALF)}
WRT = ("x", "weight", "bias")
# Normalised values have a mean square of 1, the direction one of 1/3.
WEIGHTS = {"weight": 3**-0.5, "bias": 3**-0.5}
CASES = [
    Case("layer_norm", "plain", plain, WRT, dtypes=ALL, weights=WEIGHTS, far=("x",)),
    Case("layer_norm", "one row", plain, WRT, size=1, weights=WEIGHTS),
    Case("layer_norm", "200 rows", plain, WRT, size=200, weights=WEIGHTS, dtypes=(torch.float32,)),
    Case("layer_norm", "no rows", plain, WRT, size=0),
    Case("layer_norm", "residual", inputs, (*WRT, "residual"), weights=WEIGHTS, far=("x", "residual")),
    Case("layer_norm", "odd width", lambda g, n: inputs(g, n, 37), (*WRT, "residual"), weights=WEIGHTS),
    Case("layer_norm", "float32 parameters", plain, WRT, size=9, weights=WEIGHTS, **MIXED),
    Case("layer_norm", "float32 stream", inputs, (*WRT, "residual"), size=9, weights=WEIGHTS, **MIXED),
    Case("layer_norm", "no bias", without("bias"), ("x", "weight", "residual"), size=9, weights=WEIGHTS),
    Case("layer_norm", "no weight", without("weight", "residual"), ("x", "bias"), size=9, weights=WEIGHTS),
    Case("layer_norm", "no parameters", without("weight", "bias"), ("x", "residual"), size=9),
]
