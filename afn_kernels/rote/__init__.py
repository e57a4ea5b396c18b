"""Rotary time embedding of released checkpoints: audio frames rotated by window, frame and absolute time."""

import math

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(x, window, frame, **options) -> str:
    if options["rotary_dim"] > 2048:
        return f"rotary_dim {options['rotary_dim']} does not fit one program"
    return _triton.supports(x, window, frame)


OP = Op(
    "rote",
    (
        _triton.implementation(
            "afn_kernels.rote.boundary:rote", _supports, why="one read and one write of x, phases made in registers"
        ),
        Impl("reference", "afn_kernels.rote.reference:rote", why="plain PyTorch"),
    ),
)


def rote(
    x: torch.Tensor,
    window: torch.Tensor,
    frame: torch.Tensor,
    *,
    rotary_dim: int | None = None,
    theta: float = 1200.0,
    period: float = 1200.0,
    window_factor: float = 1.0,
    frame_factor: float = 2 * math.pi,
    seconds_per_frame: float = 0.04,
    frames_per_window: int = 750,
    phase_dtype: torch.dtype = torch.float32,
    impl: str = "auto",
) -> torch.Tensor:
    """Rotates adjacent pairs of features by a phase that grows with time.

    With t = seconds_per_frame · (frames_per_window · window + frame) and f_k = theta^(−2k / rotary_dim):
    pairs 0 .. K−1 (K = ⌈rotary_dim / 2⌉):  φ = (−2π t) · (window_factor · window / period) · f_k
    pairs K .. 2K−1:                        φ = (−2π t) · (frame_factor · frame / period) · f_k
    (x0, x1) → (x0 cos φ − x1 sin φ, x1 cos φ + x0 sin φ); dims from 4K on pass through.

    With ``phase_dtype=torch.float32`` the operations follow the order of the released integration, whose
    cosines are off by up to 1e-2 at 30 minutes; ``torch.float64`` is the accurate closed form.
    Either way the phase is the reference's, rounding for rounding; the reference takes its cosine in ``phase_dtype``
    and rotates in float64, the triton implementation does both in float32 after a float64 range reduction.

    Args:
        x: [T, D] encoder output, any floating dtype.
        window: [T] integer, index of the 30 s window within its own audio.
        frame: [T] integer, index of the 40 ms frame within its window.
        rotary_dim: width of one axis, 4⌈rotary_dim / 2⌉ ≤ D; default ⌊0.2 · D⌋.
        theta: base of the frequencies. An earlier port used 1200 / 2π with both factors 2π.
        period: divisor of both position axes.
        window_factor, frame_factor: multipliers of the two position axes.
        seconds_per_frame: duration of a frame.
        frames_per_window: frames in a full window.
        phase_dtype: float32 (checkpoint parity) or float64 (accurate).
        impl: "auto" or the name of an implementation.

    Returns:
        [T, D], dtype of x.

    Raises:
        ValueError: shapes that do not fit; a rotary_dim that is too large; another phase dtype.

    Source: Goel et al., 2024, arXiv:2410.12109, as realised by the released Music Flamingo and AF-Next weights.
    """
    _check.are_tensors("rote", x=x)
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"rote: x must be floating [T, D], got {x.dtype} {tuple(x.shape)}")
    options = {
        "rotary_dim": rotary_dim,
        "theta": theta,
        "period": period,
        "window_factor": window_factor,
        "frame_factor": frame_factor,
        "seconds_per_frame": seconds_per_frame,
        "frames_per_window": frames_per_window,
        "phase_dtype": phase_dtype,
    }
    options = checked(x.shape[:1], x, window, frame, options)
    return OP.choose(impl, x, window, frame, **options)(x, window, frame, **options)


DEFAULTS = {name: value for name, value in (rote.__kwdefaults__ or {}).items() if name != "impl"}


def checked(
    rows: tuple[int, ...], like: torch.Tensor, window: torch.Tensor, frame: torch.Tensor, options: dict
) -> dict:
    """``options`` with their defaults, for rows [*rows, D] beside ``like``; ValueError where they do not fit."""
    width = like.shape[-1]
    for name, index in (("window", window), ("frame", frame)):
        _check.beside("rote", name, index, like)
        if index.shape != rows or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ValueError(f"rote: {name} must be integer {list(rows)}, got {index.dtype} {tuple(index.shape)}")
    rotary_dim, phase_dtype = options["rotary_dim"], options["phase_dtype"]
    rotary_dim = int(width * 0.2) if rotary_dim is None else rotary_dim
    if not 0 < 4 * ((rotary_dim + 1) // 2) <= width:
        raise ValueError(f"rote: two axes of rotary_dim {rotary_dim} do not fit {width} features")
    if phase_dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rote: phase_dtype is {phase_dtype}, expected float32 or float64")
    return options | {"rotary_dim": rotary_dim}
