"""Log-mel features in plain PyTorch: the specification of ``afn_kernels.log_mel``, in float32 or float64."""

import torch

from afn_kernels.log_mel.tables import HOP, N_FFT, hann_window, mel_filters


def mel_energies(pcm: torch.Tensor, n_mels: int) -> torch.Tensor:
    """Power spectrum times mel filters, [B, T] float -> [B, n_mels, T // 160], in the dtype of ``pcm``."""
    window = hann_window().to(pcm)
    spectrum = torch.stft(pcm, N_FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum[..., :-1].abs().square()
    return mel_filters(n_mels).to(pcm).T @ power


def log_mel(
    pcm: torch.Tensor,
    *,
    n_mels: int = 128,
    out_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """As ``afn_kernels.log_mel``; ``dtype`` is that of the computation: float64 for float64 samples, else float32."""
    dtype = dtype or (torch.float64 if pcm.dtype == torch.float64 else torch.float32)
    x = pcm.to(dtype) / 32768 if pcm.dtype == torch.int16 else pcm.to(dtype)
    if len(x) == 0:
        return x.new_empty(0, n_mels, x.shape[1] // HOP, dtype=out_dtype) if out is None else out
    log_energy = mel_energies(x, n_mels).clamp(min=1e-10).log10()
    log_energy = torch.maximum(log_energy, log_energy.amax((1, 2), keepdim=True) - 8)
    features = ((log_energy + 4) / 4).to(out_dtype)
    return features if out is None else out.copy_(features)
