"""Kernels that store what device functions return."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton_math
from afn_kernels.rote import triton as rote


@triton.jit
def sincos_kernel(angle, sin, cos, count, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_sin, b_cos = _triton_math.sincos(tl.load(angle + o, mask=o < count, other=0.0))
    tl.store(sin + o, b_sin, mask=o < count)
    tl.store(cos + o, b_cos, mask=o < count)


@triton.jit
def tanh_kernel(x, y, count, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o, _triton_math.tanh(tl.load(x + o, mask=o < count, other=0.0)), mask=o < count)


@triton.jit
def phases_kernel(
    window, frame, freq, phi, rows, ROTE: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = ROTE.K
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    pair = tl.arange(0, ROTE.PAIRS)[None]
    b_freq = tl.load(freq + pair % K, mask=pair < 2 * K, other=0.0)
    b_window = tl.load(window + row, mask=row < rows, other=0)
    b_frame = tl.load(frame + row, mask=row < rows, other=0)
    b_phi = rote.phases(b_window, b_frame, b_freq, pair < K, ROTE)
    tl.store(phi + row * 2 * K + pair, b_phi, mask=(row < rows) & (pair < 2 * K))


def sincos(angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sin, cos = (torch.empty(angle.shape, dtype=torch.float32, device=angle.device) for _ in range(2))
    sincos_kernel[(triton.cdiv(len(angle), 1024),)](angle, sin, cos, len(angle), BLOCK=1024)
    return sin, cos


def tanh(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    tanh_kernel[(triton.cdiv(len(x), 1024),)](x, y, len(x), BLOCK=1024)
    return y


def phases(window: torch.Tensor, frame: torch.Tensor, **o) -> torch.Tensor:
    """What the kernel of rote turns by, as ``reference.phases`` returns it."""
    freq, setting = rote.setting(
        window.device, o["rotary_dim"], o["theta"], o["period"], o["window_factor"], o["frame_factor"],
        o["seconds_per_frame"], o["frames_per_window"], o["phase_dtype"] == torch.float64,
    )  # fmt: skip
    phi = torch.empty(len(window), 2 * len(freq), dtype=freq.dtype, device=freq.device)
    phases_kernel[(triton.cdiv(len(window), 256),)](
        window, frame, freq, phi, len(window),
        ROTE=setting, BLOCK_T=256, enable_fp_fusion=False,
    )  # fmt: skip
    return phi
