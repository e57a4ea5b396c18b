import torch

from tests.kernels.harness import ALL, Case


def inputs(g, rows: int, width: int = 60):
    """Frames anywhere in 30 minutes."""
    return {
        "x": torch.randn(rows, width, generator=g, dtype=torch.float64),
        "window": torch.randint(0, 60, (rows,), generator=g),
        "frame": torch.randint(0, 750, (rows,), generator=g),
    }


ACCURATE = {"phase_dtype": torch.float64}
EARLIER = {"theta": 190.986, "window_factor": 6.283185307179586, "frame_factor": 6.283185307179586}
CASES = [
    Case("rote", "plain", inputs, ("x",), dtypes=ALL, far=("x",)),
    Case("rote", "float64 phases", inputs, ("x",), options=ACCURATE),
    Case("rote", "the encoder's width", lambda g, n: inputs(g, n, 1280), ("x",), size=9),
    Case("rote", "the encoder's width, float64 phases", lambda g, n: inputs(g, n, 1280), ("x",), ACCURATE, size=9),
    Case("rote", "an earlier port", inputs, ("x",), options=EARLIER),
    Case("rote", "everything turned, odd pairs", lambda g, n: inputs(g, n, 28), ("x",), {"rotary_dim": 13}, size=31),
    Case("rote", "one row", inputs, ("x",), size=1),
    Case("rote", "1000 rows", lambda g, n: inputs(g, n, 24), ("x",), size=1000, dtypes=(torch.float32,)),
    Case("rote", "no rows", inputs, ("x",), size=0),
]
