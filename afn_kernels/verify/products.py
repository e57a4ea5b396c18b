"""The checks of FP8 products: with the scales of a forward, of a weight's gradient, of rows and of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from afn_kernels.quantize_fp8 import quantize_fp8
from afn_kernels.verify.check import Check, Inputs, InputSource


def rounded(y: Tensor) -> Tensor:
    """Matrix units keep some 14 bits of a block's sum, which a budget of float32's own errors does not allow."""
    return y.bfloat16()


def products(full: bool) -> list[Check]:
    """linear_fp8 with each pair of scales; rows and columns beside a tile's border, and a last block that is short."""
    rows, inner, columns = (2049, 3584 + 16, 4608) if full else (35, 304, 144)

    def inputs(x_block, w_block, added: bool = False):
        def make(s: InputSource) -> Inputs:
            x, w = s.normal(rows, inner), s.normal(columns, inner, scale=inner**-0.5)
            x[1::2] *= 4  # scales that are told apart
            w[:, : inner // 2] *= 0.25
            x, scale_x = quantize_fp8(x, block=x_block, impl="reference")
            w, scale_w = quantize_fp8(w, block=w_block, impl="reference")
            made: Inputs = {"x": x, "w": w, "scale_x": scale_x, "scale_w": scale_w}
            return made | ({"bias": s.normal(columns), "residual": s.normal(rows, columns)} if added else {})

        return make

    tiles, blocks = inputs((1, 128), (128, 128)), inputs((1, 128), (1, 128))
    size = f"{rows} x {inner} x {columns}"
    short, single = {"out_dtype": torch.bfloat16}, {"out_dtype": torch.float32}
    return [
        Check("linear_fp8", f"{size}, tiles", tiles, options=short, timed=True),
        Check("linear_fp8", f"{size}, tiles, all added", inputs((1, 128), (128, 128), True), options=short),
        Check("linear_fp8", f"{size}, blocks", blocks, options=single, compared=rounded, timed=True),
        Check("linear_fp8", f"{size}, rows", inputs("row", "row"), options=short, timed=True),
        Check("linear_fp8", f"{size}, tensor", inputs("tensor", "tensor"), options=short, timed=True),
    ]
