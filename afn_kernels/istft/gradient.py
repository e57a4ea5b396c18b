"""The adjoint in plain PyTorch: windowed frames of the gradient, and their forward transform."""

import torch

from afn_kernels.istft.windows import synthesis


def backward(dwhole: torch.Tensor, window: torch.Tensor, frames: int, hop: int) -> torch.Tensor:
    """dwhole [B, F · hop + W − hop] -> the gradient of the spectrum [B, F, W / 2 + 1, 2], float32."""
    size = len(window)
    if not frames or not len(dwhole):
        return dwhole.new_zeros(len(dwhole), frames, size // 2 + 1, 2)
    parts = dwhole.unfold(1, size, hop) * synthesis(window, hop).to(dwhole.dtype)
    found = torch.view_as_real(torch.fft.rfft(parts)) * (2 / size)  # a bin stands for its mirror image too
    found[:, :, 0] /= 2  # but for these
    found[:, :, -1] /= 2
    return found
