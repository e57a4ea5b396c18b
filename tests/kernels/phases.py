"""Kernels that store what the rotations' device functions return."""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton_math
from afn_kernels.rote import triton as rote
from afn_kernels.rote.reference import frequencies


@triton.jit
def sincos_kernel(angle, sin, cos, count, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_sin, b_cos = _triton_math.sincos(tl.load(angle + o, mask=o < count, other=0.0))
    tl.store(sin + o, b_sin, mask=o < count)
    tl.store(cos + o, b_cos, mask=o < count)


@triton.jit
def phases_kernel(
    window, frame, freq, phi, rows,
    K: tl.constexpr, PERIOD: tl.constexpr, WINDOW: tl.constexpr, FRAME: tl.constexpr, SECONDS: tl.constexpr,
    FRAMES: tl.constexpr, RECIPROCAL: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    pair = tl.arange(0, PAIRS)[None]
    b_freq = tl.load(freq + pair % K, mask=pair < 2 * K, other=0.0)
    b_window = tl.load(window + row, mask=row < rows, other=0)
    b_frame = tl.load(frame + row, mask=row < rows, other=0)
    b_phi = rote.phases(b_window, b_frame, b_freq, pair < K, PERIOD, WINDOW, FRAME, SECONDS, FRAMES, RECIPROCAL)
    tl.store(phi + row * 2 * K + pair, b_phi, mask=(row < rows) & (pair < 2 * K))


def sincos(angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sin, cos = (torch.empty(angle.shape, dtype=torch.float32, device=angle.device) for _ in range(2))
    sincos_kernel[(triton.cdiv(len(angle), 1024),)](angle, sin, cos, len(angle), BLOCK=1024)
    return sin, cos


def phases(window: torch.Tensor, frame: torch.Tensor, **o) -> torch.Tensor:
    """What the kernel of rote turns by, as ``reference.phases`` returns it."""
    freq = frequencies(window.device, o["rotary_dim"], o["theta"], o["phase_dtype"])
    phi = torch.empty(len(window), 2 * len(freq), dtype=freq.dtype, device=freq.device)
    phases_kernel[(triton.cdiv(len(window), 256),)](
        window, frame, freq, phi, len(window),
        K=len(freq), PERIOD=o["period"], WINDOW=o["window_factor"], FRAME=o["frame_factor"],
        SECONDS=o["seconds_per_frame"], FRAMES=o["frames_per_window"], RECIPROCAL=window.device.type != "cpu",
        ROWS=256, PAIRS=triton.next_power_of_2(2 * len(freq)), enable_fp_fusion=False,
    )  # fmt: skip
    return phi
