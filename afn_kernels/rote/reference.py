import math

import torch


def phases(
    window: torch.Tensor,
    frame: torch.Tensor,
    *,
    rotary_dim: int,
    theta: float,
    period: float,
    window_factor: float,
    frame_factor: float,
    seconds_per_frame: float,
    frames_per_window: int,
    phase_dtype: torch.dtype,
) -> torch.Tensor:
    """The angle φ of every rotated pair, [T, 2K]: the window axis first, then the frame axis."""
    f_K = frequencies(window.device, rotary_dim, theta, phase_dtype)
    start = (window.long() * frames_per_window).to(phase_dtype) * seconds_per_frame
    seconds_T = start + frame.to(phase_dtype) * seconds_per_frame
    turn_T1 = (-seconds_T * 2 * math.pi)[:, None]
    window_TK = (window.to(phase_dtype) / period * window_factor)[:, None] * f_K
    frame_TK = (frame.to(phase_dtype) / period * frame_factor)[:, None] * f_K
    return torch.cat((window_TK * turn_T1, frame_TK * turn_T1), dim=-1)


def frequencies(device: torch.device, rotary_dim: int, theta: float, dtype: torch.dtype) -> torch.Tensor:
    """f_k = theta^(−2k / rotary_dim), [K]."""
    exponent = torch.arange(0, rotary_dim, 2, device=device).to(dtype) / rotary_dim
    return 1.0 / theta**exponent


def rote(x: torch.Tensor, window: torch.Tensor, frame: torch.Tensor, **options) -> torch.Tensor:
    phi = phases(window, frame, **options)
    cos, sin = phi.cos().double(), phi.sin().double()
    rotated = 2 * phi.shape[1]
    x0, x1 = x[:, :rotated].double().unflatten(-1, (-1, 2)).unbind(-1)
    y = torch.stack((x0 * cos - x1 * sin, x1 * cos + x0 * sin), dim=-1).flatten(-2)
    return torch.cat((y.to(x.dtype), x[:, rotated:]), dim=-1)
