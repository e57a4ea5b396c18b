"""A program per few rows. Phases are made in registers from the numbers of window and frame."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from afn_kernels._kept import kept
from afn_kernels._triton_math import sincos
from afn_kernels.rote.config import CONFIG
from afn_kernels.rote.reference import frequencies

kept_frequencies = kept(frequencies, on_device=True)


class Rote(NamedTuple):
    """What kernels that rotate are compiled for, one constexpr: K pairs on each axis, PAIRS in all with the padding."""

    K: int
    PAIRS: int
    PERIOD: float
    WINDOW: float
    FRAME: float
    SECONDS: float
    FRAMES: int
    RECIPROCAL: bool


@triton.jit
def quotient(b_x, DIVISOR: tl.constexpr, RECIPROCAL: tl.constexpr):
    """b_x / DIVISOR as PyTorch rounds it: on a GPU it multiplies by the reciprocal of a scalar."""
    if b_x.dtype == tl.float64:
        b_x = b_x * (1.0 / DIVISOR) if RECIPROCAL else b_x / DIVISOR
    elif RECIPROCAL:
        b_x = b_x * tl.div_rn(tl.full([], 1.0, tl.float32), tl.full([], DIVISOR, tl.float32))
    else:
        b_x = tl.div_rn(b_x, tl.zeros_like(b_x) + DIVISOR)
    return b_x


@triton.jit
def phases(b_window, b_frame, b_freq, m_window, ROTE: tl.constexpr):
    """φ [rows, pairs] in the dtype of b_freq [1, pairs], every step rounded as the reference rounds it.

    b_window and b_frame are int64 [rows, 1]; m_window says which pairs belong to the window axis. Launch
    without fp fusion: a product and a sum are two roundings.
    """
    DTYPE: tl.constexpr = b_freq.dtype
    b_seconds = (b_window * ROTE.FRAMES).to(DTYPE) * ROTE.SECONDS + b_frame.to(DTYPE) * ROTE.SECONDS
    b_turn = -b_seconds * 2.0 * 3.14159265358979323846
    b_w = quotient(b_window.to(DTYPE), ROTE.PERIOD, ROTE.RECIPROCAL) * ROTE.WINDOW
    b_f = quotient(b_frame.to(DTYPE), ROTE.PERIOD, ROTE.RECIPROCAL) * ROTE.FRAME
    return tl.where(m_window, b_w, b_f) * b_freq * b_turn


@triton.jit(do_not_specialize=["rows"])
def rote_kernel(
    x, window, frame, freq, y, x_stride, rows, direction,
    D: tl.constexpr, BLOCK_T: tl.constexpr, ROTE: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = ROTE.K
    PAIRS: tl.constexpr = ROTE.PAIRS
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_row = row < rows
    b_window = tl.load(window + row, mask=m_row, other=0).to(tl.int64)[:, None]
    b_frame = tl.load(frame + row, mask=m_row, other=0).to(tl.int64)[:, None]
    pair = tl.arange(0, PAIRS)
    b_freq = tl.load(freq + pair % K, mask=pair < 2 * K, other=0.0)[None]
    b_phi = phases(b_window, b_frame, b_freq, (pair < K)[None], ROTE)
    b_sin, b_cos = sincos(b_phi.to(tl.float64))
    b_sin *= direction
    column = tl.arange(0, 2 * PAIRS)[None]
    m_rotated = m_row[:, None] & (column < 4 * K)
    p_x, p_y = x + row[:, None] * x_stride, y + row[:, None] * D
    b_x = tl.load(p_x + column, mask=m_rotated, other=0.0).to(tl.float32)
    b_0, b_1 = tl.split(tl.reshape(b_x, [BLOCK_T, PAIRS, 2]))
    b_y = tl.join(tl.fma(b_0, b_cos, -b_1 * b_sin), tl.fma(b_1, b_cos, b_0 * b_sin))
    tl.store(p_y + column, tl.reshape(b_y, [BLOCK_T, 2 * PAIRS]).to(y.dtype.element_ty), mask=m_rotated)
    for first in tl.static_range(4 * K, D, 2 * PAIRS):
        m_rest = m_row[:, None] & (first + column < D)
        tl.store(p_y + first + column, tl.load(p_x + first + column, mask=m_rest, other=0.0), mask=m_rest)


def setting(
    device: torch.device,
    rotary_dim: int,
    theta: float,
    period: float,
    window_factor: float,
    frame_factor: float,
    seconds_per_frame: float,
    frames_per_window: int,
    accurate: bool,
) -> tuple[torch.Tensor, Rote]:
    """The frequencies, and what ``phases`` is compiled for."""
    freq = kept_frequencies(device, rotary_dim, theta, torch.float64 if accurate else torch.float32)
    return freq, Rote(
        K=len(freq),
        PAIRS=triton.next_power_of_2(2 * len(freq)),
        PERIOD=float(period),
        WINDOW=float(window_factor),
        FRAME=float(frame_factor),
        SECONDS=float(seconds_per_frame),
        FRAMES=frames_per_window,
        RECIPROCAL=device.type != "cpu",
    )


def rotate(
    x: torch.Tensor,
    window: torch.Tensor,
    frame: torch.Tensor,
    rotary_dim: int,
    theta: float,
    period: float,
    window_factor: float,
    frame_factor: float,
    seconds_per_frame: float,
    frames_per_window: int,
    accurate: bool,
    inverse: bool,
) -> torch.Tensor:
    """x [T, D] turned by φ, or by −φ."""
    rows, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not rows:
        return y
    freq, found = setting(
        x.device, rotary_dim, theta, period, window_factor, frame_factor, seconds_per_frame, frames_per_window, accurate
    )
    rote_kernel[(triton.cdiv(rows, CONFIG.rows),)](
        x, window, frame, freq, y, x.stride(0), rows, -1.0 if inverse else 1.0,
        D=width, BLOCK_T=CONFIG.rows, ROTE=found, num_warps=CONFIG.warps, enable_fp_fusion=False,
    )  # fmt: skip
    return y
