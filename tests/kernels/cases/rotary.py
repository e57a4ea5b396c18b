import torch

from tests.kernels.harness import ALL, Case


def inputs(g, tokens: int, heads: int = 5, kv_heads: int = 2, dim: int = 16, longest: float = 1000.0):
    """Positions in no order and not whole; frequencies from 1 down."""
    return {
        "q": torch.randn(tokens, heads, dim, generator=g, dtype=torch.float64),
        "k": torch.randn(tokens, kv_heads, dim, generator=g, dtype=torch.float64),
        "positions": torch.rand(tokens, generator=g, dtype=torch.float64) * longest,
        "inv_freq": 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim),
    }


def partial(g, tokens: int, width: int, dim: int = 16):
    """Only the first ``width`` features turn."""
    return inputs(g, tokens, dim=dim) | {
        "inv_freq": 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    }


def of_axes(g, tokens: int):
    """Positions of time, height and width."""
    return inputs(g, tokens) | {"positions": torch.rand(3, tokens, generator=g, dtype=torch.float64) * 100}


def tables(g, tokens: int, pairs: int = 8, dim: int = 16):
    made = inputs(g, tokens, dim=dim)
    angle = made.pop("positions")[:, None] * made.pop("inv_freq")[:pairs]
    return made | {"cos": angle.cos(), "sin": angle.sin()}


def given(name, make, **options):
    """In the dtype of the rest, as transformers' models have them."""
    return Case("apply_rotary", name, make, ("q", "k"), options, size=9, dtypes=(torch.bfloat16,))


def case(name, make=inputs, wrt=("q", "k"), **kwargs):
    return Case("rotary", name, make, wrt, keep=("positions", "inv_freq"), **kwargs)


ONE = {"dtypes": (torch.float32,)}
CASES = [
    case("plain", dtypes=ALL, far=("q", "k"), size=31),
    case("one token", size=1),
    case("no tokens", size=0),
    case("28 query heads", lambda g, n: inputs(g, n, 28, 4, 128), size=3),
    case("odd width", lambda g, n: inputs(g, n, 3, 3, 10), size=9),
    case("a million radians", lambda g, n: inputs(g, n, longest=1e6), size=31),
    case("partial", lambda g, n: partial(g, n, 10, 24), size=5, options={"rotary_dim": 10}, **ONE),
    case("neighbours", lambda g, n: partial(g, n, 4), size=5, options={"interleaved": True, "rotary_dim": 4}, **ONE),
    case("sections", of_axes, size=5, options={"sections": (2, 3, 3)}, **ONE),
    case("compiled", wrt=(), far=("q", "k"), size=31, impls=("cpu",), **ONE),
    case("compiled, sections", of_axes, (), size=5, options={"sections": (2, 3, 3)}, impls=("cpu",), **ONE),
    case(
        "compiled, neighbours",
        lambda g, n: partial(g, n, 10),
        (),
        size=5,
        impls=("cpu",),
        options={"interleaved": True, "rotary_dim": 10},
        **ONE,
    ),
    given("twice the half, partial", lambda g, n: tables(g, n, 6), rotary_dim=12),
    given("neighbours", tables, interleaved=True),
]
