"""Quantisation to 8-bit floats (e4m3), as FP8 matrix products take it."""

import torch

from afn_kernels import _device, _triton
from afn_kernels._registry import Impl, Op

BLOCKS = {"row": (1, 0), "tensor": (0, 0), (1, 128): (1, 128), (128, 128): (128, 128)}  # 0 is the whole axis


def _sides(block) -> tuple[int, int]:
    for name, sides in BLOCKS.items():  # torch.compile may have made block's numbers symbols, which have no hash
        if block == name:
            return sides
    raise ValueError(f"quantize_fp8: block {block!r}, expected one of {', '.join(map(repr, BLOCKS))}")


def _supports(x, *, height, width, transpose) -> str:
    if torch.is_grad_enabled() and x.requires_grad:
        return "it has no gradient"
    if (height, width, transpose) == (1, 0, False) and x.shape[1] > 65536:
        return f"a row of {x.shape[1]} elements does not fit one program"
    return _triton.supports(x) or _device.fp8(x.device)


OP = Op(
    "quantize_fp8",
    (
        _triton.implementation(
            "afn_kernels.quantize_fp8.boundary:quantize_fp8", _supports, why="one read where a block fits a program"
        ),
        Impl("reference", "afn_kernels.quantize_fp8.reference:quantize_fp8", why="plain PyTorch"),
    ),
)


def quantize_fp8(
    x: torch.Tensor, *, block: str | tuple[int, int] = "row", transpose: bool = False, impl: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """x ≈ x_fp8 · scale with scale = max|x| / 448 of each block, 448 being the largest e4m3 value.

    Values are multiplied by 1 / scale in float32, rounded to the nearest e4m3 value, ties to even, and never overflow.
    A scale is at least 2^(−126): a block of zeros gives zeros. A NaN or an infinity makes its block's scale NaN or
    infinite, and so the whole block NaN once it is multiplied by its scale. There is no gradient.

    Args:
        x: [M, K], float32, bfloat16 or float16 (other dtypes by the reference).
        block: what shares a scale: "row", "tensor", (1, 128) or (128, 128); of the result, if transposed.
        transpose: quantise xᵀ, without a copy of x in between.
        impl: "auto" or the name of an implementation.

    Returns:
        x_fp8 float8_e4m3fn [M, K], or [K, M] if transposed, contiguous; scale float32, [M, 1] for rows, [] for the
        tensor, [M, ⌈K / 128⌉] with adjacent rows for (1, 128), [⌈M / 128⌉, ⌈K / 128⌉] with rows padded to multiples
        of 4 for (128, 128): the strides that torch._scaled_mm takes.

    Raises:
        ValueError: x is not a floating matrix; a block that is not one of the four.

    Source: Micikevicius et al., 2022, arXiv:2209.05433; blocks as in DeepSeek-V3, 2024, arXiv:2412.19437.
    """
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"quantize_fp8: x is {x.dtype} {tuple(x.shape)}, expected a floating [M, K]")
    height, width = _sides(block)
    options = {"height": height, "width": width, "transpose": transpose}
    return OP.choose(impl, x, **options)(x, **options)
