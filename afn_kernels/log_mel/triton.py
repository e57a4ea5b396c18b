"""A program per 128 frames: fold, small DFT products and the mel product on tensor cores, logarithm, clamp."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels.log_mel.config import choose
from afn_kernels.log_mel.fold import MELS, WIDTH, constants
from afn_kernels.log_mel.tables import HOP, N_FFT

SPARE = 256  # at least the N_FFT + 1 samples that the last frame reaches over, less its hop
BAD = tl.constexpr(0x7FFFFFFF)  # above the bits of every float: the row holds a sample that is no number


@triton.jit
def power_of_two(exponent):
    """2 ** exponent of int32, exactly; 0 below 2 ** -126."""
    return (tl.maximum(exponent + 127, 0) << 23).to(tl.float32, bitcast=True)


@triton.jit
def fold(
    p_up, p_down, windows, scale,
    K_ODD: tl.constexpr, N_ODD: tl.constexpr, BLOCK_W: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Operands [frames, BLOCK_W] of the cosine and the sine product, from samples p_up + 2j on and p_down - 2j back."""
    j = tl.arange(0, BLOCK_W)
    n = 2 * j.to(tl.int64)
    # Not contiguous, but nearly: lanes shall walk along a frame, not from frame to frame. A row may begin at any
    # sample, so that nothing is known of its alignment, and no load takes two samples.
    p_up += tl.max_contiguous(n, [BLOCK_W])[None, :]
    p_down += tl.max_contiguous(-n, [BLOCK_W])[None, :]
    b_w_near = tl.load(windows + 2 * N_ODD * W + j)[None, :] * scale  # w[n]
    b_w_far = tl.load(windows + (2 * N_ODD + 1) * W + j)[None, :] * scale  # w[200 - n]
    b_near_up = tl.load(p_up + N_ODD).to(tl.float32)  # x[n], and so on: fold.py
    b_near_down = tl.load(p_down + (N - N_ODD)).to(tl.float32)
    b_far_down = tl.load(p_down + (N // 2 - N_ODD)).to(tl.float32)
    b_far_up = tl.load(p_up + (N // 2 + N_ODD)).to(tl.float32)
    b_near_sum, b_near_difference = (b_near_up + b_near_down) * b_w_near, (b_near_up - b_near_down) * b_w_near
    b_far_sum, b_far_difference = (b_far_down + b_far_up) * b_w_far, (b_far_down - b_far_up) * b_w_far
    if K_ODD:
        return b_near_sum - b_far_sum, b_near_difference + b_far_difference
    return b_near_sum + b_far_sum, b_near_difference - b_far_difference


@triton.jit
def product(b_x, b_matrix, b_matrix_low):
    """b_x [frames, BLOCK_W] float32 times a [BLOCK_W, W] matrix that is split in two, in three float16 products."""
    b_high = b_x.to(tl.float16)
    b_low = (b_x - b_high.to(tl.float32)).to(tl.float16)
    b_y = tl.dot(b_low, b_matrix)
    b_y = tl.dot(b_high, b_matrix_low, b_y)
    return tl.dot(b_high, b_matrix, b_y)


@triton.jit
def spectrum(
    p_frames, windows, matrices, scale,
    K_ODD: tl.constexpr, N_ODD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, HOP: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Real and imaginary part [frames, W] of the even or odd bins k, of the samples of even or odd n."""
    p_frame = p_frames + (tl.arange(0, BLOCK_T).to(tl.int64) * HOP)[:, None]
    p_matrix = matrices + (8 * K_ODD + 4 * N_ODD) * W * W
    p_matrix += tl.arange(0, BLOCK_W)[:, None] * W + tl.arange(0, W)[None, :]
    b_re = tl.zeros([BLOCK_T, W], tl.float32)
    b_im = tl.zeros([BLOCK_T, W], tl.float32)
    for j in range(0, W, BLOCK_W):  # all 64 columns at once would spill
        p_piece = p_matrix + j * W
        b_cosine, b_cosine_low = tl.load(p_piece), tl.load(p_piece + W * W)
        b_sine, b_sine_low = tl.load(p_piece + 2 * W * W), tl.load(p_piece + 3 * W * W)
        b_cos, b_sin = fold(p_frame + 2 * j, p_frame - 2 * j, windows + j, scale, K_ODD, N_ODD, BLOCK_W, W, N)
        # Added here, which rounds to nearest: tensor cores cut off, and the three products are twelve cuts in a row.
        b_re += product(b_cos, b_cosine, b_cosine_low)
        b_im += product(b_sin, b_sine, b_sine_low)
    return b_re, b_im


@triton.jit
def power(
    p_frames, windows, matrices, scale, K_ODD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, HOP: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Power [frames, W] of the even or odd bins k up to 100, and of the bins 200 - k."""
    b_re, b_im = spectrum(p_frames, windows, matrices, scale, K_ODD, 0, BLOCK_T, BLOCK_W, HOP, W, N)
    b_re_odd, b_im_odd = spectrum(p_frames, windows, matrices, scale, K_ODD, 1, BLOCK_T, BLOCK_W, HOP, W, N)
    b_re_k, b_re_mirror = b_re + b_re_odd, b_re - b_re_odd
    b_im_k, b_im_mirror = b_im + b_im_odd, b_im - b_im_odd
    return b_re_k * b_re_k + b_im_k * b_im_k, b_re_mirror * b_re_mirror + b_im_mirror * b_im_mirror


@triton.jit
def exponent(b_x):
    """Of float32 as int32, from -113: 2 ** 14 over it is still finite."""
    return tl.maximum((b_x.to(tl.int32, bitcast=True) >> 23) - 127, -113)


@triton.jit
def split_power(b_power, b_shift):
    """Power · 2 ** b_shift, transposed, in float16 and what that leaves, which is · 2 ** 11 so that it stays normal."""
    b_power *= power_of_two(b_shift)[:, None]
    b_main = b_power.to(tl.float16)
    return tl.trans(b_main), tl.trans(((b_power - b_main.to(tl.float32)) * 2048).to(tl.float16))


@triton.jit
def mel_product(b_mel, filters, b_k, b_mirror, W: tl.constexpr, MELS: tl.constexpr):
    """b_mel plus filters times power, both split, of bins k and of bins 200 - k; first what is · 2 ** 11."""
    p_filter = filters + tl.arange(0, MELS)[:, None] * W + tl.arange(0, W)[None, :]
    b_filter_k, b_filter_mirror = tl.load(p_filter), tl.load(p_filter + 2 * W * MELS)
    b_k_main, b_k_rest = b_k
    b_mirror_main, b_mirror_rest = b_mirror
    b_mel *= 2048
    b_mel = tl.dot(b_filter_k, b_k_rest, b_mel)
    b_mel = tl.dot(tl.load(p_filter + W * MELS), b_k_main, b_mel)
    b_mel = tl.dot(b_filter_mirror, b_mirror_rest, b_mel)
    b_mel = tl.dot(tl.load(p_filter + 3 * W * MELS), b_mirror_main, b_mel)
    b_mel *= 0.00048828125
    b_mel = tl.dot(b_filter_k, b_k_main, b_mel)
    return tl.dot(b_filter_mirror, b_mirror_main, b_mel)


@triton.jit
def log10(b_x):
    """log10 of normal positive float32, NaN of NaN: the exponent apart, so that large logarithms round once."""
    bits = b_x.to(tl.int32, bitcast=True)
    b_exponent = ((bits >> 23) - 127).to(tl.float32)
    b_log = tl.log2(((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)) * 0.3010299956639812
    # log10(2) = 77 / 256 + 0.00024874...: the first product is exact
    return b_exponent * 0.30078125 + (b_exponent * 0.00024874566398119521 + b_log)


@triton.jit
def copy_reflected(p_row, p_edge, begin, last, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """p_edge [SPAN] = samples from ``begin`` on, reflected at the ends of the row; 0 far beyond it."""
    for i in range(0, SPAN, BLOCK):
        to = i + tl.arange(0, BLOCK)
        at = tl.abs(begin + to)
        at = tl.minimum(at, last - at + last)
        tl.store(p_edge + to, tl.load(p_row + at, mask=(at >= 0) & (to < SPAN), other=0), mask=to < SPAN)
    tl.debug_barrier()


@triton.jit
def largest_sample(p_frames, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    b_peak = tl.zeros([BLOCK], tl.float32)
    for i in range(0, SPAN, BLOCK):
        at = i + tl.arange(0, BLOCK)
        b_peak = tl.maximum(b_peak, tl.abs(tl.load(p_frames + at, mask=at < SPAN, other=0.0)))
    return tl.max(b_peak)


@triton.jit(do_not_specialize=["pcm_stride", "samples", "frames", "tiles"])
def log_mel_kernel(
    pcm, windows, matrices, filters, edges, out, state, extremes, pcm_stride, samples, frames, tiles,
    N_MELS: tl.constexpr, MELS: tl.constexpr, N: tl.constexpr, HOP: tl.constexpr, W: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_T: tl.constexpr, SPAN: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row, tile = (program // tiles).to(tl.int64), program % tiles
    first = tile * BLOCK_T
    begin = first.to(tl.int64) * HOP - N // 2
    p_row = pcm + row * pcm_stride
    p_frames = p_row + begin
    # The first and the last program of a row work on a reflected copy: every address is a base and a constant.
    if (tile == 0) | (tile == tiles - 1):
        p_edge = edges + (2 * row + (tile > 0)) * SPAN
        copy_reflected(p_row, p_edge, begin, samples - 1, SPAN, BLOCK)
        p_frames = p_edge

    # Samples are scaled below 2 ** 14, so that folded ones fit float16; those in [-1, 1] always by the same power.
    shift = 0
    if WHOLE:
        log_scale = -2
    else:
        peak = largest_sample(p_frames, SPAN, BLOCK)
        shift = tl.maximum((peak.to(tl.int32, bitcast=True) >> 23) - 127, 0)
        log_scale = 13 - shift
    scale = power_of_two(log_scale)

    b_k, b_mirror = power(p_frames, windows, matrices, scale, 0, BLOCK_T, BLOCK_W, HOP, W, N)
    b_top = tl.max(tl.maximum(b_k, b_mirror), 1)
    b_log_even = exponent(b_top)
    b_even_k, b_even_mirror = split_power(b_k, 14 - b_log_even), split_power(b_mirror, 14 - b_log_even)
    b_k, b_mirror = power(p_frames, windows, matrices, scale, 1, BLOCK_T, BLOCK_W, HOP, W, N)
    b_top = tl.maximum(b_top, tl.max(tl.maximum(b_k, b_mirror), 1))
    b_log_top = exponent(b_top)
    b_odd_k, b_odd_mirror = split_power(b_k, 14 - b_log_top), split_power(b_mirror, 14 - b_log_top)

    b_mel = tl.zeros([MELS, BLOCK_T], tl.float32)
    b_mel = mel_product(b_mel, filters, b_even_k, b_even_mirror, W, MELS)
    b_mel *= power_of_two(b_log_even - b_log_top)[None, :]
    b_mel = mel_product(b_mel, filters + 4 * W * MELS, b_odd_k, b_odd_mirror, W, MELS)

    b_frame = first + tl.arange(0, BLOCK_T)
    unit = power_of_two(shift - 27)  # of the products' scale 2 ** (14 + 13 - shift)
    b_energy = b_mel * power_of_two(b_log_top - 14)[None, :] * unit * (unit * 0.0000152587890625)
    infinite = float("inf")
    b_energy = tl.where((b_top * unit * unit < infinite)[None, :], b_energy, float("nan"))
    b_energy = tl.where(b_energy < 1e-10, 1e-10, b_energy)
    b_key = tl.where(b_energy < infinite, b_energy.to(tl.int32, bitcast=True), BAD)
    b_key = tl.where((b_frame < frames)[None, :], b_key, 0)  # frames beyond the row repeat parts of it
    b_y = (log10(b_energy) + 4) * 0.25

    p_out = out + tl.multiple_of(row * N_MELS * frames, 16)
    mel = tl.arange(0, MELS)
    m_out = (mel < N_MELS)[:, None] & (b_frame < frames)[None, :]
    tl.store(p_out + mel[:, None] * frames + b_frame[None, :], b_y.to(out.dtype.element_ty), mask=m_out)

    # The last program of a row knows the row's maximum and clamps what lies below it, which is still in L2.
    high = tl.max(tl.max(b_key, 1), 0)
    low = tl.min(tl.min(tl.where(m_out, b_key, BAD), 1), 0)
    p_state, p_extremes = state + 3 * row, extremes + 2 * row * tiles
    tl.store(p_extremes + 2 * tile, low)
    tl.store(p_extremes + 2 * tile + 1, high)
    tl.atomic_max(p_state, high, sem="relaxed")
    tl.atomic_max(p_state + 1, BAD - low, sem="relaxed")
    tl.debug_barrier()
    if tl.atomic_add(p_state + 2, 1, sem="acq_rel") == tiles - 1:
        key = tl.atomic_max(p_state, 0, sem="acq_rel")
        least = BAD - tl.atomic_max(p_state + 1, 0, sem="acq_rel")
        bad = key == BAD
        top = tl.where(bad, float("nan"), log10(key.to(tl.float32, bitcast=True)))
        b_floor = (tl.full([ROWS, BLOCK_T], 0, tl.float32) + (((top - 8) + 4) * 0.25)).to(out.dtype.element_ty)
        # Energies a factor of two below the floor are below it, and above it, however their logarithms are rounded.
        below = key.to(tl.float32, bitcast=True) * 0.5e-8
        if bad | (least.to(tl.float32, bitcast=True) < 4 * below):
            b_at = tl.arange(0, BLOCK_T)
            for i in range(0, tiles):
                tile_low = tl.load(p_extremes + 2 * i, cache_modifier=".cg").to(tl.float32, bitcast=True)
                tile_high = tl.load(p_extremes + 2 * i + 1, cache_modifier=".cg").to(tl.float32, bitcast=True)
                if bad | (tile_low < 4 * below):
                    for j in range(0, N_MELS, ROWS):
                        b_row = j + tl.arange(0, ROWS)
                        p_tile = p_out + i * BLOCK_T + b_row[:, None] * frames + b_at[None, :]
                        m_tile = (b_row < N_MELS)[:, None] & (i * BLOCK_T + b_at < frames)[None, :]
                        if not (bad | (tile_high < below)):
                            b_done = tl.load(p_tile, mask=m_tile, other=0.0, cache_modifier=".cg").to(tl.float32)
                            m_tile = m_tile & (b_done < b_floor.to(tl.float32))
                        tl.store(p_tile, b_floor, mask=m_tile)


def write(pcm: torch.Tensor, out: torch.Tensor) -> None:
    """pcm [B, T] float32 or int16, adjacent samples; out [B, n_mels, T / 160] contiguous."""
    rows, samples = pcm.shape
    if not rows:
        return
    n_mels, frames = out.shape[1:]
    config = choose(_triton.small_tiles(), pcm.device)
    tiles = triton.cdiv(frames, config.frames)
    windows, matrices, filters = constants(n_mels, pcm.device)
    # Bits of the largest energy, those of the smallest less than all bits, programs done; both of each tile.
    state = torch.zeros(rows, 3, dtype=torch.int32, device=pcm.device)
    extremes = torch.empty(rows, tiles, 2, dtype=torch.int32, device=pcm.device)
    span = config.frames * HOP + SPARE
    edges = torch.empty(rows, 2, span, dtype=pcm.dtype, device=pcm.device)
    log_mel_kernel[(rows * tiles,)](
        pcm, windows, matrices, filters, edges, out, state, extremes, pcm.stride(0), samples, frames, tiles,
        N_MELS=n_mels, MELS=MELS, N=N_FFT, HOP=HOP, W=WIDTH, WHOLE=pcm.dtype == torch.int16,
        BLOCK_T=config.frames, SPAN=span, BLOCK_W=config.piece, BLOCK=config.chunk,
        ROWS=min(MELS, config.chunk // config.frames),
        num_warps=config.warps, num_stages=1,
    )  # fmt: skip
