import torch

from tests.kernels.harness import ALL, BF16, Case


def inputs(
    g: torch.Generator, frames: int, channels: int = 20, taps: int = 7, clips: int = 2
) -> dict[str, torch.Tensor]:
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    made = {"x": normal(clips, frames, channels), "weight": normal(channels, taps), "bias": normal(channels)}
    return made | {"state": normal(clips, taps - 1, channels)}


def without(*names: str, **shape):
    return lambda g, frames: {name: x for name, x in inputs(g, frames, **shape).items() if name not in names}


SUMS = {"weight": 3**-0.5, "bias": 3**-0.5}  # inputs have a mean square of 1, the direction one of 1/3


def case(name: str, make, wrt, size: int, **options) -> Case:
    return Case("causal_conv", name, make, wrt, size=size, weights=SUMS, summed=2 * size, **options)


CASES = [
    case("plain", without("state"), ("x", "weight", "bias"), 41, dtypes=ALL, far=("x",)),
    case("state", inputs, ("x", "weight", "bias", "state"), 9),
    case("one tap", without("state", "bias", channels=35, taps=1), ("x", "weight"), 5, dtypes=(torch.float32,)),
    case("shorter than its taps", inputs, ("x", "state"), 1, dtypes=(torch.float32,)),
    case("float32 taps", without("state"), ("x", "weight", "bias"), 9, keep=("weight", "bias"), dtypes=(BF16,)),
    case("no frames", inputs, ("x", "weight", "bias", "state"), 0, dtypes=(torch.float32,)),
]
