"""Arithmetic that several kernels share."""

import triton
import triton.language as tl


@triton.jit
def row_statistics(b_x, inside, D: tl.constexpr, eps):
    """mean and 1 / sqrt(variance + eps) of a row of D elements; two passes over registers, so nothing cancels."""
    b_mean = tl.sum(b_x) / D
    b_centred = tl.where(inside, b_x - b_mean, 0.0)
    return b_mean, 1 / tl.sqrt(tl.sum(b_centred * b_centred) / D + eps)


@triton.jit
def layer_norm_gradient(b_dy, b_weight, b_n, b_rstd, D: tl.constexpr):
    """Gradient of a row before LayerNorm, from that of its output; b_n is the normalised row, 0 outside."""
    b_dn = b_dy * b_weight
    return (b_dn - tl.sum(b_dn) / D - b_n * (tl.sum(b_dn * b_n) / D)) * b_rstd
