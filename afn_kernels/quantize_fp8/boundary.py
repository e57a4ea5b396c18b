"""quantize_fp8 as torch.compile sees its Triton kernels; it has no backward."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels.quantize_fp8.layout import scale_layout


def _fake(x: Tensor, height: int, width: int, transpose: bool) -> tuple[Tensor, Tensor]:
    rows, columns = reversed(x.shape) if transpose else x.shape
    shape, strides = scale_layout(rows, columns, height, width)
    scale = torch.empty_strided(shape, strides, dtype=torch.float32, device=x.device)
    return x.new_empty((rows, columns), dtype=torch.float8_e4m3fn), scale


FORWARD = Boundary("quantize_fp8", "afn_kernels.quantize_fp8.triton:forward", _fake)


def quantize_fp8(x, *, height, width, transpose):
    """The "triton" row of the op's table."""
    return FORWARD(x if x.stride(1) == 1 else x.contiguous(), height, width, transpose)
