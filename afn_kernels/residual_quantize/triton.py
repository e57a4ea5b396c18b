"""A program per 16 rows walks down the levels; what its codes add up to stays in its lines of the result."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels.residual_quantize.config import choose


@triton.jit(do_not_specialize=["rows", "depth"])
def forward_kernel(
    x, codebooks, levels, first, codes, total, x_stride, rows, depth,
    K: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_row = row < rows
    b_first = tl.load(first + row, mask=m_row, other=depth)
    b_last = tl.load(levels + row, mask=m_row, other=0)
    for level in range(tl.min(b_first).to(tl.int32), tl.max(b_last).to(tl.int32)):
        book = codebooks + tl.cast(level, tl.int64) * (K * D)
        b_least = tl.full([BLOCK_T], float("inf"), tl.float32)
        b_code = tl.zeros([BLOCK_T], tl.int32)
        for start in range(0, K, BLOCK_K):
            code = start + tl.arange(0, BLOCK_K)
            m_code = code < K
            b_product = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
            b_norm = tl.zeros([BLOCK_K], tl.float32)
            for part in range(0, D, BLOCK_D):
                column = part + tl.arange(0, BLOCK_D)
                m_col = column < D
                m_x = m_row[:, None] & m_col[None, :]
                b_r = tl.load(x + row[:, None] * x_stride + column[None, :], mask=m_x, other=0.0).to(tl.float32)
                b_r -= tl.load(total + row[:, None] * D + column[None, :], mask=m_x, other=0.0)
                m_e = m_code[:, None] & m_col[None, :]
                p_e = book + code.to(tl.int64)[:, None] * D + column[None, :]
                b_e = tl.load(p_e, mask=m_e, other=0.0).to(tl.float32)
                b_product = tl.dot(b_r, tl.trans(b_e), b_product, input_precision="ieee")
                b_norm += tl.sum(b_e * b_e, 1)
            b_far = b_norm[None, :] - 2 * b_product
            b_far = tl.where(m_code[None, :] & (b_far == b_far), b_far, float("inf"))
            b_here, b_at = tl.min(b_far, 1, return_indices=True)  # the first of those as near
            b_code = tl.where(b_here < b_least, start + b_at, b_code)
            b_least = tl.minimum(b_here, b_least)
        active = m_row & (b_first <= level) & (level < b_last)
        tl.store(codes + row * depth + level, b_code.to(tl.int64), mask=active)
        tl.debug_barrier()  # every thread has read the sums that change now
        for part in range(0, D, BLOCK_D):
            column = part + tl.arange(0, BLOCK_D)
            m_e = active[:, None] & (column < D)[None, :]
            p_total = total + row[:, None] * D + column[None, :]
            b_e = tl.load(book + b_code.to(tl.int64)[:, None] * D + column[None, :], mask=m_e, other=0.0)
            tl.store(p_total, tl.load(p_total, mask=m_e, other=0.0) + b_e.to(tl.float32), mask=m_e)
        tl.debug_barrier()  # and finds them changed at the next level


def forward(
    x: torch.Tensor, codebooks: torch.Tensor, levels: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, D], adjacent within a row, codebooks [L, K, D] -> codes [T, L] and what they add up to [T, D] float32."""
    rows, width = x.shape
    depth, count, _ = codebooks.shape
    codes = torch.full((rows, depth), -1, dtype=torch.int64, device=x.device)
    total = torch.zeros(rows, width, dtype=torch.float32, device=x.device)
    config = choose(_triton.small_tiles())
    if codes.numel():
        forward_kernel[(triton.cdiv(rows, config.rows),)](
            x, codebooks, levels, first, codes, total, x.stride(0), rows, depth,
            K=count, D=width, BLOCK_T=config.rows, BLOCK_K=config.codes, BLOCK_D=config.part, num_warps=config.warps,
        )  # fmt: skip
    return codes, total
