"""A program per few rows. Phases are made in registers from the numbers of window and frame."""

import torch
import triton
import triton.language as tl

from afn_kernels._kept import kept
from afn_kernels._triton_math import sincos
from afn_kernels.rote.config import CONFIG
from afn_kernels.rote.reference import frequencies

kept_frequencies = kept(frequencies)


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
def phases(
    b_window, b_frame, b_freq, on_window,
    PERIOD: tl.constexpr, WINDOW: tl.constexpr, FRAME: tl.constexpr, SECONDS: tl.constexpr, FRAMES: tl.constexpr,
    RECIPROCAL: tl.constexpr,
):  # fmt: skip
    """φ [rows, pairs] in the dtype of b_freq [1, pairs], every step rounded as the reference rounds it.

    b_window and b_frame are int64 [rows, 1]; on_window says which pairs belong to the window axis. Launch
    without fp fusion: a product and a sum are two roundings.
    """
    DTYPE: tl.constexpr = b_freq.dtype
    b_seconds = (b_window * FRAMES).to(DTYPE) * SECONDS + b_frame.to(DTYPE) * SECONDS
    b_turn = -b_seconds * 2.0 * 3.14159265358979323846
    b_w = quotient(b_window.to(DTYPE), PERIOD, RECIPROCAL) * WINDOW
    b_f = quotient(b_frame.to(DTYPE), PERIOD, RECIPROCAL) * FRAME
    return tl.where(on_window, b_w, b_f) * b_freq * b_turn


@triton.jit(do_not_specialize=["rows"])
def rote_kernel(
    x, window, frame, freq, y, x_stride, rows, direction,
    D: tl.constexpr, K: tl.constexpr, PERIOD: tl.constexpr, WINDOW: tl.constexpr, FRAME: tl.constexpr,
    SECONDS: tl.constexpr, FRAMES: tl.constexpr, RECIPROCAL: tl.constexpr,
    ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    b_window = tl.load(window + row, mask=there, other=0).to(tl.int64)[:, None]
    b_frame = tl.load(frame + row, mask=there, other=0).to(tl.int64)[:, None]
    pair = tl.arange(0, PAIRS)
    b_freq = tl.load(freq + pair % K, mask=pair < 2 * K, other=0.0)[None]
    b_phi = phases(b_window, b_frame, b_freq, (pair < K)[None], PERIOD, WINDOW, FRAME, SECONDS, FRAMES, RECIPROCAL)
    b_sin, b_cos = sincos(b_phi.to(tl.float64))
    b_sin *= direction
    column = tl.arange(0, 2 * PAIRS)[None]
    inside = there[:, None] & (column < 4 * K)
    p_x, p_y = x + row[:, None] * x_stride, y + row[:, None] * D
    b_x = tl.load(p_x + column, mask=inside, other=0.0).to(tl.float32)
    b_0, b_1 = tl.split(tl.reshape(b_x, [ROWS, PAIRS, 2]))
    b_y = tl.join(tl.fma(b_0, b_cos, -b_1 * b_sin), tl.fma(b_1, b_cos, b_0 * b_sin))
    tl.store(p_y + column, tl.reshape(b_y, [ROWS, 2 * PAIRS]).to(y.dtype.element_ty), mask=inside)
    for first in tl.static_range(4 * K, D, 2 * PAIRS):
        rest = there[:, None] & (first + column < D)
        tl.store(p_y + first + column, tl.load(p_x + first + column, mask=rest, other=0.0), mask=rest)


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
) -> tuple[torch.Tensor, dict[str, float | int | bool]]:
    """The frequencies, and what ``phases`` is compiled for: K pairs of each axis, PAIRS in all with the padding."""
    freq = kept_frequencies(device, rotary_dim, theta, torch.float64 if accurate else torch.float32)
    return freq, {
        "K": len(freq),
        "PAIRS": triton.next_power_of_2(2 * len(freq)),
        "PERIOD": float(period),
        "WINDOW": float(window_factor),
        "FRAME": float(frame_factor),
        "SECONDS": float(seconds_per_frame),
        "FRAMES": frames_per_window,
        "RECIPROCAL": device.type != "cpu",
    }


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
    freq, constants = setting(
        x.device, rotary_dim, theta, period, window_factor, frame_factor, seconds_per_frame, frames_per_window, accurate
    )
    rote_kernel[(triton.cdiv(rows, CONFIG.rows),)](
        x, window, frame, freq, y, x.stride(0), rows, -1.0 if inverse else 1.0,
        D=width, ROWS=CONFIG.rows, **constants, num_warps=CONFIG.warps, enable_fp_fusion=False,
    )  # fmt: skip
    return y
