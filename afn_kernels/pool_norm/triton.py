"""A program per pair of rows; where a pair of packed rows starts is worked out on the device, once per call."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels._rows import choose
from afn_kernels._triton_math import layer_norm_gradient, row_statistics, sincos
from afn_kernels.pool_norm.config import ROWS
from afn_kernels.rote.triton import phases, setting

BLOCK_N = 1024  # of source_kernel: sequences, and then rows of one, looked at together


@triton.jit(do_not_specialize=["sequences", "total"])
def source_kernel(cu, source, sequences, total, BLOCK_N: tl.constexpr):
    """source[r] is the first of the two rows that output row r is the mean of; -1 beyond the last output row."""
    n = tl.program_id(0)
    o_block = tl.arange(0, BLOCK_N)
    b_before = tl.zeros([BLOCK_N], tl.int32)
    for i in range(0, n, BLOCK_N):
        m_earlier = i + o_block < n
        b_start = tl.load(cu + i + o_block, mask=m_earlier, other=0)
        b_before += (tl.load(cu + i + o_block + 1, mask=m_earlier, other=0) - b_start) // 2
    before = tl.sum(b_before)
    m_sequence = n < sequences
    start = tl.load(cu + n, mask=m_sequence, other=0)
    count = tl.where(m_sequence, (tl.load(cu + n + 1, mask=m_sequence, other=0) - start) // 2, total - before)
    for i in range(0, count, BLOCK_N):
        o_pair = i + o_block
        b_first = tl.where(m_sequence, start + 2 * o_pair, -1)
        tl.store(source + before + o_pair, b_first, mask=(o_pair < count) & (before + o_pair < total))


@triton.jit
def first_row(row, source, length, RAGGED: tl.constexpr):
    half = length // 2
    return tl.load(source + row).to(tl.int64) if RAGGED else (row // half) * length + 2 * (row % half)


@triton.jit
def rotated(b_x, row, direction, window, frame, freq, BLOCK_D: tl.constexpr, ROTE: tl.constexpr):
    """Rotates the leading pairs of a row b_x [BLOCK_D] by direction · φ."""
    K: tl.constexpr = ROTE.K
    PAIRS: tl.constexpr = ROTE.PAIRS
    pair = tl.arange(0, PAIRS)
    b_freq = tl.load(freq + pair % K, mask=pair < 2 * K, other=0.0)  # φ is 0 beyond the rotated pairs
    b_window, b_frame = tl.load(window + row).to(tl.int64), tl.load(frame + row).to(tl.int64)
    b_phi = phases(b_window, b_frame, b_freq, pair < K, ROTE)
    b_sin, b_cos = sincos(b_phi.to(tl.float64))
    b_sin, b_cos = b_sin[None] * direction, b_cos[None]
    m_lead = tl.arange(0, BLOCK_D // (2 * PAIRS))[:, None] == 0
    b_0, b_1 = tl.split(tl.reshape(b_x, [BLOCK_D // (2 * PAIRS), PAIRS, 2]))
    b_y0 = tl.where(m_lead, tl.fma(b_0, b_cos, -b_1 * b_sin), b_0)
    b_y1 = tl.where(m_lead, tl.fma(b_1, b_cos, b_0 * b_sin), b_1)
    return tl.reshape(tl.join(b_y0, b_y1), [BLOCK_D])


@triton.jit(do_not_specialize=["length"])
def forward_kernel(
    x, weight, bias, source, y, mean, rstd, window, frame, freq, x_stride, length, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, RAGGED: tl.constexpr, ROTE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    m_col = column < D
    first = first_row(row, source, length, RAGGED)
    m_pair = column < tl.where(first >= 0, D, 0)
    p_x = x + first * x_stride + column
    b_x = tl.load(p_x, mask=m_pair, other=0.0).to(tl.float32)
    b_x = (b_x + tl.load(p_x + x_stride, mask=m_pair, other=0.0).to(tl.float32)) * 0.5
    b_mean, b_rstd = row_statistics(b_x, m_col, D, eps)
    b_rstd = tl.where(first >= 0, b_rstd, float("nan"))  # a row that ``total`` promises and no sequence has
    tl.store(mean + row, b_mean)
    tl.store(rstd + row, b_rstd)
    b_weight = tl.load(weight + column, mask=m_col, other=0.0).to(tl.float32)
    b_bias = tl.load(bias + column, mask=m_col, other=0.0).to(tl.float32)
    b_y = tl.fma((b_x - b_mean) * b_rstd, b_weight, b_bias)
    if ROTE is not None:
        b_y = rotated(b_y, row, 1.0, window, frame, freq, BLOCK_D, ROTE)
    tl.store(y + row * D + column, b_y.to(y.dtype.element_ty), mask=m_col)


@triton.jit(do_not_specialize=["length", "rows", "sequences"])
def backward_kernel(
    dy, x, weight, cu, source, mean, rstd, dx, partial, window, frame, freq,
    dy_stride, x_stride, length, rows, sequences,
    D: tl.constexpr, BLOCK_D: tl.constexpr, RAGGED: tl.constexpr, DX: tl.constexpr, DW: tl.constexpr, DB: tl.constexpr,
    ROTE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK_D)
    m_col = column < D
    b_weight = tl.load(weight + column, mask=m_col, other=0.0).to(tl.float32)
    b_dw = tl.zeros([BLOCK_D], tl.float32)
    b_db = tl.zeros([BLOCK_D], tl.float32)
    for i in range(program, rows, tl.num_programs(0)):
        row = tl.cast(i, tl.int64)
        first = first_row(row, source, length, RAGGED)
        m_pair = column < tl.where(first >= 0, D, 0)
        p_x = x + first * x_stride + column
        b_rstd = tl.load(rstd + row)
        b_x = tl.load(p_x, mask=m_pair, other=0.0).to(tl.float32)
        b_x = (b_x + tl.load(p_x + x_stride, mask=m_pair, other=0.0).to(tl.float32)) * 0.5
        b_dy = tl.load(dy + row * dy_stride + column, mask=m_col, other=0.0).to(tl.float32)
        if ROTE is not None:
            b_dy = rotated(b_dy, row, -1.0, window, frame, freq, BLOCK_D, ROTE)
        b_n = tl.where(m_col, (b_x - tl.load(mean + row)) * b_rstd, 0.0)
        if DW:
            b_dw = tl.fma(b_dy, b_n, b_dw)
        if DB:
            b_db += b_dy
        if DX:
            b_dx = (0.5 * layer_norm_gradient(b_dy, b_weight, b_n, b_rstd, D)).to(dx.dtype.element_ty)
            tl.store(dx + first * D + column, b_dx, mask=m_pair)
            tl.store(dx + first * D + D + column, b_dx, mask=m_pair)
    if DX:  # the last row of an odd sequence has no partner
        for i in range(program, sequences, tl.num_programs(0)):
            if RAGGED:
                end = tl.load(cu + i + 1).to(tl.int64)
                size = end - tl.load(cu + i)
            else:
                size = tl.cast(length, tl.int64)
                end = (i + 1) * size
            b_zero = tl.zeros([BLOCK_D], tl.float32).to(dx.dtype.element_ty)
            tl.store(dx + (end - 1) * D + column, b_zero, mask=column < tl.where(size % 2 == 1, D, 0))
    p_partial = partial + program.to(tl.int64) * D + column
    if DW:
        tl.store(p_partial, b_dw, mask=m_col)
        p_partial += tl.num_programs(0).to(tl.int64) * D
    if DB:
        tl.store(p_partial, b_db, mask=m_col)


def _rote(x: torch.Tensor, window: torch.Tensor | None, constants: tuple) -> tuple[torch.Tensor | None, dict]:
    """The frequencies and launch options of the kernels where a row is rotated, or is not."""
    if window is None:
        return None, {"ROTE": None}
    freq, found = setting(x.device, *constants)
    return freq, {"ROTE": found, "enable_fp_fusion": False}  # as ``phases`` asks


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    length: int,
    total: int,
    eps: float,
    window: torch.Tensor | None = None,
    frame: torch.Tensor | None = None,
    *constants,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [T, D] -> y [total, D], mean [total], 1 / deviation [total], first row of each pair [total] int32.

    Sequences are ``length`` rows each, or those of ``cu_seqlens``; the first rows are empty without ``cu_seqlens``.
    With window and frame [total] the rows of y are rotated; ``constants`` are those of rote.
    """
    width = x.shape[1]
    ragged = cu_seqlens is not None
    y = torch.empty(total, width, dtype=x.dtype, device=x.device)
    mean = torch.empty(total, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    source = torch.empty(total if ragged else 0, dtype=torch.int32, device=x.device)
    if not total:
        return y, mean, rstd, source
    if ragged:
        source_kernel[(len(cu_seqlens),)](cu_seqlens, source, len(cu_seqlens) - 1, total, BLOCK_N=BLOCK_N, num_warps=4)
    freq, rote = _rote(x, window, constants)
    forward_kernel[(total,)](
        x, weight, bias, source, y, mean, rstd, window, frame, freq, x.stride(0), length, eps,
        D=width, BLOCK_D=triton.next_power_of_2(width), RAGGED=ragged, **rote, num_warps=choose(ROWS, width).warps,
    )  # fmt: skip
    return y, mean, rstd, source


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    source: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    length: int,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    window: torch.Tensor | None,
    frame: torch.Tensor | None,
    *constants,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx [T, D] (empty when it is not needed), and those of dw and db [D] float32 that are needed, stacked."""
    rows, width = dy.shape
    ragged = cu_seqlens is not None
    sequences = len(cu_seqlens) - 1 if ragged else len(x) // max(length, 1)
    config = choose(ROWS, width)
    programs = max(1, min(max(rows, sequences), config.waves * _triton.programs(x.device)))
    dx = torch.empty(x.shape if need_dx else 0, dtype=x.dtype, device=x.device)
    partial = torch.empty(need_dw + need_db, programs, width, dtype=torch.float32, device=x.device)
    freq, rote = _rote(x, window, constants)
    backward_kernel[(programs,)](
        dy, x, weight, cu_seqlens, source, mean, rstd, dx, partial, window, frame, freq,
        dy.stride(0), x.stride(0), length, rows, sequences,
        D=width, BLOCK_D=triton.next_power_of_2(width), RAGGED=ragged, DX=need_dx, DW=need_dw, DB=need_db,
        **rote, num_warps=config.warps,
    )  # fmt: skip
    return dx, partial.sum(1)
