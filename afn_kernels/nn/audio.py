"""From samples to what an encoder reads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_kernels.log_mel import log_mel


class AudioFrontEnd(nn.Module):
    """y = log_mel(pcm), and with ``width`` y = GELU(conv2(GELU(conv1(log_mel(pcm)))))ᵀ, as Whisper's encoder begins.

    Args:
        n_mels: 128 or 80.
        width: D of the convolutions ``conv1`` and ``conv2``, whose keys and initialisation are those of
            transformers' WhisperEncoder; None has no convolutions and no parameters.
        out_dtype: dtype of the features without convolutions; with them it is that of ``conv1.weight``.
        device, dtype: of the parameters.
        impl: as ``log_mel`` takes it.

    Returns:
        Called with pcm [B, T] float32 in [−1, 1] or int16 at 16 kHz, T a multiple of 160: [B, n_mels, T / 160], or
        with ``width`` [B, ⌈T / 320⌉, D].

    Raises:
        ValueError: what ``log_mel`` raises; ``out_dtype`` together with ``width``.
    """

    def __init__(
        self,
        n_mels: int = 128,
        width: int | None = None,
        out_dtype: torch.dtype | None = None,
        device=None,
        dtype=None,
        *,
        impl: str = "auto",
    ):
        if width is not None and out_dtype is not None:
            raise ValueError(f"out_dtype={out_dtype} has no meaning with width={width}: use dtype")
        super().__init__()
        self.n_mels, self.out_dtype, self.impl = n_mels, out_dtype or torch.float32, impl
        self.conv1 = self.conv2 = None
        if width is not None:
            self.conv1 = nn.Conv1d(n_mels, width, 3, padding=1, device=device, dtype=dtype)
            self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1, device=device, dtype=dtype)

    def forward(self, pcm: Tensor) -> Tensor:
        if self.conv1 is None:
            return log_mel(pcm, n_mels=self.n_mels, out_dtype=self.out_dtype, impl=self.impl)
        mel = log_mel(pcm, n_mels=self.n_mels, out_dtype=self.conv1.weight.dtype, impl=self.impl)
        return F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"n_mels={self.n_mels}"
