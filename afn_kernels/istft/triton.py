"""Every sample is a product of the numbers of the frames that cover it, which lie one after another in memory."""

import torch
import triton
import triton.language as tl

from afn_kernels._kept import kept
from afn_kernels.istft.config import choose


@triton.jit(do_not_specialize=["frames"])
def forward_kernel(
    spectrum, units, window, state, whole, s_batch, s_frame, frames,
    HOP: tl.constexpr, W: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Samples [frame, BLOCK_N] of HOP each, from PARTS frames of W + 2 numbers that end with that frame."""
    WIDE: tl.constexpr = W + 2
    across, tiles = tl.cdiv(HOP, BLOCK_N), tl.cdiv(frames + PARTS - 1, BLOCK_F)
    tile = tl.program_id(0) // across
    batch = (tile // tiles).to(tl.int64)
    frame = (tile % tiles).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)[:, None]
    within = (tl.program_id(0) % across) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    m_hop = within < HOP
    b_sum = tl.zeros([BLOCK_F, BLOCK_N], tl.float32)
    for start in range(0, PARTS * WIDE, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        part, number = PARTS - 1 - k // WIDE, k % WIDE
        source = frame - part[None, :]
        read = (k < PARTS * WIDE) & (number != 1) & (number != WIDE - 1)  # other imaginary parts than those of the ends
        m_x = (source >= 0) & (source < frames) & read[None, :]
        p_x = spectrum + batch * s_batch + source * s_frame + number[None, :]
        b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
        n = part[:, None] * HOP + within  # of the frame's own samples
        m_n = (n < W) & m_hop & read[:, None]
        b_m = tl.load(units + number[:, None] * W + n, mask=m_n, other=0.0) * tl.load(window + n, mask=m_n, other=0.0)
        b_sum = tl.dot(b_x, b_m, b_sum, input_precision="ieee")
    b_squares = tl.zeros([1, BLOCK_N], tl.float32)
    for part in range(PARTS):
        n = part * HOP + within
        b_window = tl.load(window + n, mask=(n < W) & m_hop, other=0.0)
        b_squares += b_window * b_window
    b_sum /= tl.where(m_hop, b_squares, 1.0)
    sample = frame * HOP + within
    length = tl.cast(frames, tl.int64) * HOP + (W - HOP)
    m_out = m_hop & (sample < length)
    if state is not None:
        b_sum += tl.load(state + batch * (W - HOP) + sample, mask=m_out & (sample < W - HOP), other=0.0)
    tl.store(whole + batch * length + sample, b_sum, mask=m_out)


@kept(most=8)
def unit_inverse(size: int, device: torch.device) -> torch.Tensor:
    """The samples [W + 2, W] of spectra that hold a single 1: the inverse transform as a matrix, made in float64."""
    units = torch.eye(size + 2, dtype=torch.float64).view(size + 2, size // 2 + 1, 2)
    return torch.fft.irfft(torch.view_as_complex(units), size).float().to(device)


def forward(spectrum: torch.Tensor, window: torch.Tensor, state: torch.Tensor | None, hop: int) -> torch.Tensor:
    """spectrum [B, F, W / 2 + 1, 2], contiguous in its last two axes -> s [B, F · hop + W − hop] float32."""
    batch, frames = spectrum.shape[:2]
    size, config = len(window), choose(hop)
    parts = triton.cdiv(size, hop)
    whole = torch.empty(batch, frames * hop + size - hop, dtype=torch.float32, device=spectrum.device)
    if whole.numel():
        tiles = batch * triton.cdiv(frames + parts - 1, config.frames) * triton.cdiv(hop, config.samples)
        forward_kernel[(tiles,)](
            spectrum, unit_inverse(size, spectrum.device), window, state, whole,
            spectrum.stride(0), spectrum.stride(1), frames,
            HOP=hop, W=size, PARTS=parts, BLOCK_F=config.frames, BLOCK_N=config.samples, BLOCK_K=config.bins,
            num_warps=config.warps,
        )  # fmt: skip
    return whole
