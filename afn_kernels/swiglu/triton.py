"""The gated kernels with SiLU; gate and up may be two halves of one tensor."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton_activations as activations
from afn_kernels._rows import choose
from afn_kernels._triton_activations import activation
from afn_kernels._triton_fp8 import store_quantised
from afn_kernels.quantize_fp8.layout import scale_layout
from afn_kernels.swiglu.config import FP8_PART, FP8_WARPS, ROWS


@triton.jit(do_not_specialize=["rows"])
def fp8_kernel(
    gate, up, codes, scale, gate_stride, up_stride, rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """A program per row, or with LINES per part of one; the result is rounded to the dtype of gate, then quantised."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_D
    column = first + tl.arange(0, BLOCK_D)
    m_col = column < D
    b_gate = tl.load(gate + row * gate_stride + column, mask=m_col, other=0.0).to(tl.float32)
    b_up = tl.load(up + row * up_stride + column, mask=m_col, other=0.0).to(tl.float32)
    b_active, _ = activation(b_gate, "silu")
    b_y = (b_active * b_up).to(gate.dtype.element_ty).to(tl.float32)
    store_quantised(b_y, codes, scale, row, rows, first, D, BLOCK_D, LINES)


def forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate, up [T, D] -> y [T, D]."""
    return activations.gated_forward(gate, up, "silu", choose(ROWS, gate.shape[1]))


def backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, need_dgate: bool, need_dup: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """dgate and dup [T, D], each empty when it is not needed."""
    return activations.gated_backward(dy, gate, up, need_dgate, need_dup, "silu", choose(ROWS, gate.shape[1]))


def forward_fp8(gate: torch.Tensor, up: torch.Tensor, line: int) -> tuple[torch.Tensor, torch.Tensor]:
    """gate, up [T, D] -> codes [T, D] and the scales of rows, or with ``line`` of 128 of their elements."""
    rows, width = gate.shape
    codes = torch.empty(gate.shape, dtype=torch.float8_e4m3fn, device=gate.device)
    shape, strides = scale_layout(rows, width, 1, line)
    scale = torch.empty_strided(shape, strides, dtype=torch.float32, device=gate.device)
    if not gate.numel():
        return codes, scale.fill_(2.0**-126)
    block = max(128, triton.next_power_of_2(min(width, FP8_PART) if line else width))
    fp8_kernel[(rows, triton.cdiv(width, block))](
        gate, up, codes, scale, gate.stride(0), up.stride(0), rows,
        D=width, BLOCK_D=block, LINES=bool(line), num_warps=choose(FP8_WARPS, block),
    )  # fmt: skip
    return codes, scale
