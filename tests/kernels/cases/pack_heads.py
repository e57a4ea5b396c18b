import torch

from tests.kernels.harness import ALL, Case

EVEN = ((0, 4, 0, 1), (4, 8, 1, 2))
UNEVEN = ((0, 3, 0, 2), (3, 6, 1, 2), (6, 8, 1, 2))  # 8 : 2 heads over three peers: KV heads go to two of them


def inputs(rotary: bool = False, dim: int = 64):
    def make(g: torch.Generator, rows: int) -> dict[str, torch.Tensor]:
        made = {
            name: torch.randn(rows, heads, dim, generator=g, dtype=torch.float64)
            for name, heads in (("q", 8), ("k", 2), ("v", 2))
        }
        if rotary:
            made["positions"] = 100 * torch.rand(rows, generator=g, dtype=torch.float64)
            made["inv_freq"] = 1e-4 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        return made

    return make


def flat(heads: int):
    return lambda g, rows: {"flat": torch.randn(rows * heads * 64, generator=g, dtype=torch.float64)}


def case(name: str, heads, make, size: int = 9, **options) -> Case:
    return Case("pack_heads", name, make, ("q", "k", "v"), {"heads": heads}, size, impls=("cuda",), **options)


ANGLES = ("positions", "inv_freq")
CASES = [
    case("even", EVEN, inputs(), dtypes=ALL, far=("q", "k", "v")),
    case("uneven", UNEVEN, inputs()),
    case("rotated", UNEVEN, inputs(True), keep=ANGLES),
    case("heads of 128", EVEN, inputs(True, 128), size=3, keep=ANGLES),
    case("one row", UNEVEN, inputs(), size=1),
    case("no rows", EVEN, inputs(), size=0),
    *(
        Case("unpack_heads", name, flat(8), ("flat",), {"heads": heads, "head_dim": 64}, size, impls=("cuda",))
        for name, heads, size in (("even", EVEN, 9), ("uneven", UNEVEN, 33), ("no rows", EVEN, 0))
    ),
]
