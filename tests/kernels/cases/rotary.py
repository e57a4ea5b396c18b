import torch

from tests.kernels.harness import Case


def inputs(g, tokens: int, heads: int = 5, kv_heads: int = 2, dim: int = 16, longest: float = 1000.0):
    """Positions in no order and not whole; frequencies from 1 down."""
    return {
        "q": torch.randn(tokens, heads, dim, generator=g, dtype=torch.float64),
        "k": torch.randn(tokens, kv_heads, dim, generator=g, dtype=torch.float64),
        "positions": torch.rand(tokens, generator=g, dtype=torch.float64) * longest,
        "inv_freq": 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim),
    }


def case(name, make=inputs, wrt=("q", "k"), **kwargs):
    return Case("rotary", name, make, wrt, keep=("positions", "inv_freq"), **kwargs)


CASES = [
    case("plain", far=("q", "k"), size=31),
    case("one token", size=1),
    case("no tokens", size=0),
    case("28 query heads", lambda g, n: inputs(g, n, 28, 4, 128), size=3),
    case("odd width", lambda g, n: inputs(g, n, 3, 3, 10), size=9),
    case("a million radians", lambda g, n: inputs(g, n, longest=1e6), size=31),
]
