"""Arithmetic that several kernels share."""

import triton
import triton.language as tl

from afn_kernels import _triton

INTERPRETED = tl.constexpr(_triton.interpreted())  # the interpreter has no inline assembly


@triton.jit
def reciprocal(x):
    """1 / x for float32 x of ordinary size, to one step: an instruction, where the full range costs five."""
    if INTERPRETED:
        y = 1 / x
    else:
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def exp2(x):
    """2^x in float32, to two steps, and 0 below 2^-126: an instruction, where denormal results cost four."""
    if INTERPRETED:
        y = tl.exp2(x)
    else:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def tanh(x):
    """tanh of float32 x within 4e-7 of itself: near zero a polynomial, beyond it 1 − 2 / (exp(2 |x|) + 1).

    For matrix kernels, which have few registers left; that of cross_entropy is closer and needs more.
    """
    b_z = x * x
    b_near = tl.fma(tl.fma(b_z, 1.5613464639e-2, -5.2212305367e-2), b_z, 1.3313125074e-1)
    b_near = tl.fma(tl.fma(b_near, b_z, -3.3332598209e-1) * b_z, x, x)
    b_far = 1.0 - 2.0 / (tl.exp2(tl.abs(x) * 2.885390081777927) + 1.0)
    return tl.where(b_z < 0.36, b_near, tl.where(x < 0, -b_far, b_far))


@triton.jit
def row_statistics(b_x, m_col, D: tl.constexpr, eps):
    """mean and 1 / sqrt(variance + eps) of a row of D elements; two passes over registers, so nothing cancels."""
    b_mean = tl.sum(b_x) / D
    b_centred = tl.where(m_col, b_x - b_mean, 0.0)
    return b_mean, 1 / tl.sqrt(tl.sum(b_centred * b_centred) / D + eps)


@triton.jit
def softmax_step(b_s, b_max, b_sum, scale2, LN: tl.constexpr, MASKED: tl.constexpr):
    """Adds a block of scores b_s [M, N] to a running softmax of exp2(scale2 · s), whose maximum and sum are [M].

    LN is ln 2 where maxima are natural logarithms and 1 where they are logarithms to base 2. With MASKED, scores may be
    −inf. Returns p [M, N] relative to the new maximum, what earlier sums are worth relative to it, maximum and sum.
    """
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * (scale2 * LN))
    # A row that has seen no key yet has a maximum of -inf, from which nothing may be subtracted.
    b_safe = tl.where(b_new == float("-inf"), 0.0, b_new) if MASKED else b_new
    b_p = tl.exp2(b_s * scale2 - (b_safe * (1 / LN))[:, None])
    b_keep = tl.exp2((b_max - b_safe) * (1 / LN))
    return b_p, b_keep, b_new, b_sum * b_keep + tl.sum(b_p, 1)


@triton.jit
def layer_norm_gradient(b_dy, b_weight, b_n, b_rstd, D: tl.constexpr):
    """Gradient of a row before LayerNorm, from that of its output; b_n is the normalised row, 0 outside."""
    b_dn = b_dy * b_weight
    return (b_dn - tl.sum(b_dn) / D - b_n * (tl.sum(b_dn * b_n) / D)) * b_rstd


@triton.jit
def sincos(b_angle):
    """sin and cos in float32 of a float64 angle in radians, each within 2e-7 up to 1e8 rad.

    The multiple of π/2 is taken off in float64, which an H100 does at half the rate of float32 and which needs no
    splitting of π; what is left lies within π/4 of zero, where two short float32 polynomials do.
    """
    b_turns = tl.floor(b_angle * 0.63661977236758134308 + 0.5)
    b_r = (b_angle - b_turns * 1.57079632679489661923).to(tl.float32)
    b_quadrant = b_turns.to(tl.int64).to(tl.int32)
    b_z = b_r * b_r
    b_s = tl.fma(tl.fma(b_z, -1.9515295891e-4, 8.3321608736e-3), b_z, -1.6666654611e-1)
    b_s = tl.fma(b_s * b_z, b_r, b_r)
    b_c = tl.fma(tl.fma(b_z, 2.443315711809948e-5, -1.388731625493765e-3), b_z, 4.166664568298827e-2)
    b_c = tl.fma(tl.fma(b_c, b_z, -0.5), b_z, 1.0)
    odd = (b_quadrant & 1) == 1
    b_sin, b_cos = tl.where(odd, b_c, b_s), tl.where(odd, b_s, b_c)
    b_sin = tl.where((b_quadrant & 2) == 2, -b_sin, b_sin)
    return b_sin, tl.where(((b_quadrant + 1) & 2) == 2, -b_cos, b_cos)
