import torch

from tests.kernels.harness import ALL, BF16, HALF, Case


def inputs(g: torch.Generator, rows: int, width: int = 48) -> dict[str, torch.Tensor]:
    x, residual = torch.randn(2, rows, width, generator=g, dtype=torch.float64)
    return {"x": x, "weight": torch.randn(width, generator=g, dtype=torch.float64), "residual": residual}


def plain(g, rows, width=48):
    return {name: x for name, x in inputs(g, rows, width).items() if name != "residual"}


def unweighted(g, rows):
    return {name: x for name, x in inputs(g, rows).items() if name != "weight"}


MIXED = {"keep": ("weight", "residual"), "dtypes": (BF16, HALF)}
WEIGHTS = {"weight": 3**-0.5}  # normalised values have a mean square of 1, the direction one of 1/3
COMPILED = {"dtypes": (torch.float32,), "impls": ("cpu",)}
CASES = [
    Case("rms_norm", "plain", plain, ("x", "weight"), dtypes=ALL, weights=WEIGHTS, far=("x",)),
    Case("rms_norm", "one row", plain, ("x", "weight"), size=1, weights=WEIGHTS),
    Case("rms_norm", "200 rows", plain, ("x", "weight"), size=200, weights=WEIGHTS, dtypes=(torch.float32,)),
    Case("rms_norm", "no rows", plain, ("x", "weight"), size=0),
    Case("rms_norm", "residual", inputs, ("x", "weight", "residual"), weights=WEIGHTS, far=("x", "residual")),
    Case("rms_norm", "odd width", lambda g, n: inputs(g, n, 37), ("x", "weight", "residual"), weights=WEIGHTS),
    Case("rms_norm", "float32 weight", plain, ("x", "weight"), size=9, weights=WEIGHTS, **MIXED),
    Case("rms_norm", "float32 stream", inputs, ("x", "weight", "residual"), size=9, weights=WEIGHTS, **MIXED),
    Case("rms_norm", "offset", inputs, ("x", "weight", "residual"), {"offset": 1.0}, size=9, weights=WEIGHTS),
    Case("rms_norm", "offset, float32 weight", plain, ("x", "weight"), {"offset": 1}, size=9, weights=WEIGHTS, **MIXED),
    Case("rms_norm", "no weight", unweighted, ("x", "residual"), size=9),
    Case("rms_norm", "compiled", lambda g, n: inputs(g, n, 37), far=("x", "residual"), **COMPILED),
    Case("rms_norm", "compiled, offset", lambda g, n: plain(g, n, 300), options={"offset": 1.0}, **COMPILED),
]
