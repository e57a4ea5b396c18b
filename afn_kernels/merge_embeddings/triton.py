"""A program per row, which copies it from where it comes: one read and one write of every row that is kept."""

import torch
import triton
import triton.language as tl

from afn_kernels.merge_embeddings.config import CONFIG


@triton.jit(do_not_specialize=["count", "tokens"])
def place_kernel(rows, source, count, tokens, BLOCK_N: tl.constexpr):
    """source[rows[i]] = i."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.load(rows + i, mask=i < count, other=-1)
    tl.store(source + row, i.to(tl.int32), mask=(row >= 0) & (row < tokens))


@triton.jit
def copy_kernel(tokens, audio, source, out, token_stride, audio_stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(source + row).to(tl.int64)
    for first in tl.static_range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        m_col = column < D
        if place >= 0:
            b_x = tl.load(audio + place * audio_stride + column, mask=m_col)
        else:
            b_x = tl.load(tokens + row * token_stride + column, mask=m_col)
        tl.store(out + row * D + column, b_x, mask=m_col)


@triton.jit
def keep_kernel(dy, source, dx, dy_stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """dx[t] = dy[t] where no audio was put, else 0."""
    row = tl.program_id(0).to(tl.int64)
    width = tl.where(tl.load(source + row) < 0, D, 0)
    for first in tl.static_range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        m_col = column < D
        b_dy = tl.load(dy + row * dy_stride + column, mask=column < width, other=0.0)
        tl.store(dx + row * D + column, b_dy, mask=m_col)


@triton.jit(do_not_specialize=["tokens"])
def gather_kernel(dy, rows, dx, dy_stride, tokens, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """dx[i] = dy[rows[i]]."""
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i)
    width = tl.where((row >= 0) & (row < tokens), D, 0)
    for first in tl.static_range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        m_col = column < D
        b_dy = tl.load(dy + row * dy_stride + column, mask=column < width, other=0.0)
        tl.store(dx + i * D + column, b_dy, mask=m_col)


def _shape(width: int) -> dict:
    block = min(CONFIG.block, triton.next_power_of_2(width))
    return {"D": width, "BLOCK_D": block, "num_warps": CONFIG.warps}


def forward(tokens: torch.Tensor, audio: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """y [T, D], and for every row the audio row it took, or −1, int32 [T]."""
    count, width = tokens.shape
    out = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    source = torch.full((count,), -1, dtype=torch.int32, device=tokens.device)
    if len(rows):
        place_kernel[(triton.cdiv(len(rows), CONFIG.places),)](rows, source, len(rows), count, BLOCK_N=CONFIG.places)
    if count:
        copy_kernel[(count,)](tokens, audio, source, out, tokens.stride(0), audio.stride(0), **_shape(width))
    return out, source


def backward(
    dy: torch.Tensor, rows: torch.Tensor, source: torch.Tensor, need_tokens: bool, need_audio: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of tokens [T, D] and audio [N, D]; one that is not needed is empty."""
    count, width = dy.shape
    d_tokens = torch.empty((count, width) if need_tokens else 0, dtype=dy.dtype, device=dy.device)
    d_audio = torch.empty((len(rows), width) if need_audio else 0, dtype=dy.dtype, device=dy.device)
    if need_tokens and count:
        keep_kernel[(count,)](dy, source, d_tokens, dy.stride(0), **_shape(width))
    if need_audio and len(rows):
        gather_kernel[(len(rows),)](dy, rows, d_audio, dy.stride(0), count, **_shape(width))
    return d_tokens, d_audio
