import torch

import afn_kernels as ak
from afn_kernels._fp8_scales import FP8
from tests.kernels.harness import BF16, Case


class ProductCase(Case):
    """Codes are FP8 in every precision; float64 is computed, and returned, where the scales are."""

    def _cast(self, name, x, dtype):
        return x if x.dtype == FP8 else super()._cast(name, x, dtype)

    def call(self, inputs, impl):
        codes = {
            name: x for name in ("x", "w") if isinstance(x := inputs[name], torch.Tensor) and x.is_floating_point()
        }
        given = inputs | {name: x.to(FP8) for name, x in codes.items()}
        wide = getattr(inputs["scale_x"], "dtype", None) == torch.float64
        options = {"out_dtype": torch.float64} if wide else self.options
        return (ak.linear_fp8(**given, **options, impl=impl),)


def inputs(g, rows, inner=304, columns=130, blocks=((1, 128), (128, 128)), added=False):
    """Rows and blocks of different sizes, so that no two scales are alike."""
    made = {}
    for name, length, block in (("x", rows, blocks[0]), ("w", columns, blocks[1])):
        x = torch.randn(length, inner, generator=g) * torch.rand(length, 1, generator=g).exp2()
        x *= torch.rand(inner, generator=g).exp2()
        made[name], made[f"scale_{name}"] = ak.quantize_fp8(x, block=block, impl="reference")
    if added:
        made["bias"] = torch.randn(columns, generator=g, dtype=torch.float64)
        made["residual"] = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    return made


def case(name: str, size: int = 35, impls=("cuda",), **shape) -> Case:
    """In bfloat16: matrix units keep fewer bits than float32 has, for which test_linear_fp8.py has bounds."""
    return ProductCase(
        "linear_fp8", name, lambda g, n: inputs(g, n, **shape), options={"out_dtype": BF16}, size=size,
        dtypes=(BF16,), keep=("scale_x", "scale_w"), impls=impls,
    )  # fmt: skip


ROWS, BLOCKS, TENSOR = ("row", "row"), ((1, 128), (1, 128)), ("tensor", "tensor")
CASES = [
    case("tiles"),
    case("tiles, all added", added=True),
    case("blocks", blocks=BLOCKS),
    case("rows", blocks=ROWS),
    case("tensor", columns=144, blocks=TENSOR),
    case("tensor, all added", columns=144, blocks=TENSOR, added=True),
]
