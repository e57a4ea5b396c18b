"""Results in FP8 codes, for ops that quantise what they compute before it leaves the registers."""

import torch

from afn_kernels._fp8_scales import FP8

BLOCKS = {"row": (1, 0), (1, 128): (1, 128)}  # as in quantize_fp8


def output_block(
    op: str, out_dtype: torch.dtype | None, block: str | tuple[int, int], x: torch.Tensor, *others: torch.Tensor | None
) -> tuple[int, int] | None:
    """Sides of the blocks that share a scale, 0 for the whole row; None where the result stays floating.

    Raises:
        ValueError: another dtype or block, an x that is no matrix, or a gradient that is wanted.
    """
    if out_dtype is None:
        return None
    if out_dtype != FP8:
        raise ValueError(f"{op}: out_dtype is {out_dtype}, expected {FP8} or None")
    found = next((sides for name, sides in BLOCKS.items() if block == name), None)  # symbols have no hash
    if found is None:
        raise ValueError(f"{op}: block {block!r}, expected one of {', '.join(map(repr, BLOCKS))}")
    if x.dim() != 2:
        raise ValueError(f"{op}: x is {tuple(x.shape)}, expected [T, D] with out_dtype {FP8}")
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, *others)):
        raise ValueError(f"{op}: codes have no gradient, and an argument requires one; detach it")
    return found
