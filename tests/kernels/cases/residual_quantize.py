import torch

from tests.kernels.harness import Case


class QuantizedCase(Case):
    """Codes are numbers of the budget too: that of a difference of 1 is far below 1."""

    def call(self, inputs, impl):
        codes, total = super().call(inputs, impl)
        return codes.to(total.dtype), total


def inputs(g: torch.Generator, rows: int, width: int = 24, count: int = 37, levels: int = 3, limits: bool = False):
    """Rows near to sums of codes that get smaller with each level: which code is nearest is no matter of rounding."""
    books = torch.randn(levels, count, width, generator=g, dtype=torch.float64)
    books *= 0.25 ** torch.arange(levels)[:, None, None]
    taken = torch.randint(count, (levels, rows), generator=g)
    x = sum(book[codes] for book, codes in zip(books, taken, strict=True)) + torch.zeros(rows, width).double()
    made = {"x": x, "codebooks": books}
    if limits:
        ends = torch.randint(levels + 1, (2, rows), generator=g).sort(0).values
        made |= {"first": ends[0], "levels": ends[1]}
    return made


def case(name: str, size: int, options: dict | None = None, **shape) -> Case:
    only = {"dtypes": shape.pop("dtypes")} if "dtypes" in shape else {}
    make = lambda g, n: inputs(g, n, **shape)  # noqa: E731
    far = ("x",) if not options and size else ()
    return QuantizedCase("residual_quantize", name, make, options=options or {}, size=size, far=far, **only)


ONLY = (torch.float32,)
CASES = [
    case("every level", 35),
    case("a range for each row", 9, limits=True, dtypes=ONLY),
    case("one range", 5, {"levels": 2, "first": 1}, dtypes=ONLY),
    case("one code", 5, count=1, dtypes=ONLY),
    case("no rows", 0, dtypes=ONLY),
]
