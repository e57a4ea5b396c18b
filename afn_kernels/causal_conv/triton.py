"""Tiles of frames and channels; the backward walks over frames with the gradients of its channels in registers."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels.causal_conv.config import choose


@triton.jit
def load_rows(x, row, column, stride, rows, m_col):
    """Rows [BLOCK_T, 1] of a sequence, float32; zeros before its first and after its last one."""
    m_tile = (row >= 0) & (row < rows) & m_col
    return tl.load(x + row * stride + column, mask=m_tile, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["frames", "before"])
def forward_kernel(
    x, weight, bias, y, x_batch, x_frame, frames, before,
    C: tl.constexpr, TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``frames`` outputs of each sequence; x has ``before`` more rows in front of them."""
    across, tiles = tl.cdiv(C, BLOCK_C), tl.cdiv(frames, BLOCK_T)
    tile = tl.program_id(0) // across
    batch = (tile // tiles).to(tl.int64)
    row = (tile % tiles).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    column = (tl.program_id(0) % across) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    m_col = column < C
    b_y = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if bias is not None:
        b_y += tl.load(bias + column, mask=m_col, other=0.0).to(tl.float32)
    for tap in tl.static_range(TAPS):
        b_w = tl.load(weight + column * TAPS + tap, mask=m_col, other=0.0).to(tl.float32)
        b_x = load_rows(x + batch * x_batch, row + (before - TAPS + 1 + tap), column, x_frame, frames + before, m_col)
        b_y += b_w * b_x
    p_y = y + (batch * frames + row) * C + column
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=(row < frames) & m_col)


@triton.jit(do_not_specialize=["batches", "frames", "before", "steps"])
def backward_kernel(
    dy, x, weight, dx, partial, dy_batch, dy_frame, x_batch, x_frame, batches, frames, before, steps,
    C: tl.constexpr, TAPS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
    DX: tl.constexpr, DW: tl.constexpr,
):  # fmt: skip
    """Row r of x is read by output r - before + TAPS - 1 - tap; partial sums of dw are [TAPS, C], with db below."""
    across = tl.cdiv(C, BLOCK_C)
    first = tl.program_id(0) // across
    column = (tl.program_id(0) % across) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    m_col = column < C
    taps = tl.arange(0, BLOCK_W)[:, None]
    b_dw = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    tiles = tl.cdiv(frames + before, BLOCK_T)
    for i in range(first, batches * tiles, steps):
        batch = tl.cast(i // tiles, tl.int64)
        row = tl.cast(i % tiles, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
        if DW:
            b_x = load_rows(x + batch * x_batch, row, column, x_frame, frames + before, m_col)
        b_dx = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
        for tap in tl.static_range(TAPS):
            b_dy = load_rows(dy + batch * dy_batch, row + (TAPS - 1 - tap - before), column, dy_frame, frames, m_col)
            if DX:
                b_dx += b_dy * tl.load(weight + column * TAPS + tap, mask=m_col, other=0.0).to(tl.float32)
            if DW:
                b_dw += tl.where(taps == tap, tl.sum(b_dy * b_x, 0)[None, :], 0.0)
                if tap == TAPS - 1:  # whose rows are those of the outputs, each once
                    b_dw += tl.where(taps == TAPS, tl.sum(b_dy, 0)[None, :], 0.0)
        if DX:
            p_dx = dx + (batch * (frames + before) + row) * C + column
            tl.store(p_dx, b_dx.to(dx.dtype.element_ty), mask=(row < frames + before) & m_col)
    if DW:
        p_partial = partial + (first.to(tl.int64) * (TAPS + 1) + taps) * C + column
        tl.store(p_partial, b_dw, mask=(taps <= TAPS) & m_col)


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, before: int) -> torch.Tensor:
    """x [B, before + T, C], channels adjacent -> y [B, T, C]."""
    batches, rows, channels = x.shape
    frames, config = rows - before, choose(channels, _triton.small_tiles())
    y = torch.empty((batches, frames, channels), dtype=x.dtype, device=x.device)
    if y.numel():
        tiles = batches * triton.cdiv(frames, config.frames) * triton.cdiv(channels, config.channels)
        forward_kernel[(tiles,)](
            x, weight, bias, y, x.stride(0), x.stride(1), frames, before,
            C=channels, TAPS=weight.shape[1], BLOCK_T=config.frames, BLOCK_C=config.channels, num_warps=config.warps,
        )  # fmt: skip
    return y


def backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, before: int, need_dx: bool, need_dw: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx as x, and [k + 1, C] float32: the gradient of the weight, transposed, and below it that of the bias.

    Each is empty when it is not needed.
    """
    batches, rows, channels = x.shape
    taps, config = weight.shape[1], choose(channels, _triton.small_tiles())
    across, tiles = triton.cdiv(channels, config.channels), batches * triton.cdiv(rows, config.back)
    steps = max(1, min(tiles, config.waves * _triton.programs(x.device) // max(1, across)))
    dx = torch.empty(x.shape if need_dx else 0, dtype=x.dtype, device=x.device)
    partial = torch.empty(steps if need_dw else 0, taps + 1, channels, dtype=torch.float32, device=x.device)
    if channels:
        backward_kernel[(across * steps,)](
            dy, x, weight, dx, partial, dy.stride(0), dy.stride(1), x.stride(0), x.stride(1),
            batches, rows - before, before, steps,
            C=channels, TAPS=taps, BLOCK_W=triton.next_power_of_2(taps + 1), BLOCK_T=config.back,
            BLOCK_C=config.channels, DX=need_dx, DW=need_dw, num_warps=config.warps,
        )  # fmt: skip
    return dx, partial.sum(0) if need_dw else partial.new_empty(0)
