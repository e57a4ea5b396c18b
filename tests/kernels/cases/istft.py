import torch

from tests.kernels.harness import Case


def inputs(g: torch.Generator, frames: int, window: int = 32, hop: int = 8, state: bool = False):
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    made = {"spectrum": normal(2, frames, window // 2 + 1, 2), "window": torch.hann_window(window).double() + 0.1}
    return made | ({"state": normal(2, window - hop)} if state else {})


def case(name: str, size: int, window: int = 32, hop: int = 8, state: bool = False, **options) -> Case:
    make = lambda g, n: inputs(g, n, window, hop, state)  # noqa: E731
    wrt = ("spectrum", "state") if state else ("spectrum",)
    return Case("istft", name, make, wrt, {"hop": hop}, size, keep=("window", "state"), **options)


ONLY = {"dtypes": (torch.float32,)}
CASES = [
    case("window 32, hop 8", 41, far=("spectrum",)),
    case("state", 5, state=True),
    case("hop does not divide the window", 7, 20, 7, state=True, **ONLY),
    case("frames side by side", 3, 36, 36, **ONLY),
    case("shortest", 5, 2, 1, **ONLY),
    case("no frames", 0, state=True, **ONLY),
]
