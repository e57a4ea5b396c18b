import torch

from tests.kernels.harness import ALL, Case


def inputs(g: torch.Generator, rows: int, width: int = 40) -> dict[str, torch.Tensor]:
    """Gates of several units: both ends of the sigmoid."""
    gate, up = torch.randn(2, rows, width, generator=g, dtype=torch.float64)
    return {"gate": gate * 3, "up": up}


WRT = ("gate", "up")
CASES = [
    Case("swiglu", "plain", inputs, WRT, dtypes=ALL, far=WRT),
    Case("swiglu", "several tiles", lambda g, n: inputs(g, n, 1100), WRT),
    Case("swiglu", "one row", inputs, WRT, size=1),
    Case("swiglu", "1000 rows", inputs, WRT, size=1000),
    Case("swiglu", "no rows", inputs, WRT, size=0),
    Case("swiglu", "odd width", lambda g, n: inputs(g, n, 37), WRT),
]
