import torch

from tests.kernels.harness import ALL, BF16, HALF, Case


def inputs(g: torch.Generator, rows: int, width: int = 40) -> dict[str, torch.Tensor]:
    """From deep in one tail to deep in the other."""
    x = torch.randn(rows, width, generator=g, dtype=torch.float64)
    return {"x": x * 3, "bias": torch.randn(width, generator=g, dtype=torch.float64)}


def unbiased(g, rows):
    return {"x": inputs(g, rows)["x"]}


TANH = {"approximate": "tanh"}
MIXED = {"keep": ("bias",), "dtypes": (BF16, HALF)}
WRT = ("x", "bias")
WEIGHTS = {"bias": 0.42}  # the slope is about 1 on half of the rows, the direction has a mean square of 1/3
CASES = [
    Case("bias_gelu", "plain", inputs, WRT, dtypes=ALL, weights=WEIGHTS, far=("x",)),
    Case("bias_gelu", "several tiles", lambda g, n: inputs(g, n, 1100), WRT, weights=WEIGHTS),
    Case("bias_gelu", "one row", inputs, WRT, size=1, weights=WEIGHTS),
    Case("bias_gelu", "1000 rows", inputs, WRT, size=1000, weights=WEIGHTS),
    Case("bias_gelu", "no rows", inputs, WRT, size=0),
    Case("bias_gelu", "odd width", lambda g, n: inputs(g, n, 37), WRT, weights=WEIGHTS),
    Case("bias_gelu", "tanh", inputs, WRT, TANH, weights=WEIGHTS),
    Case("bias_gelu", "float32 bias", inputs, WRT, size=9, weights=WEIGHTS, **MIXED),
    Case("bias_gelu", "no bias", unbiased, ("x",), size=9),
]
