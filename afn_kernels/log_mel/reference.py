"""Log-mel features in plain PyTorch: the specification of ``afn_kernels.log_mel``, in float32 or float64."""

import torch
from torch.nn.functional import pad

from afn_kernels.log_mel.mel_config import MelConfig
from afn_kernels.log_mel.tables import HOP, N_FFT, filters, hann_window, mel_filters, window


def mel_energies(pcm: torch.Tensor, n_mels: int) -> torch.Tensor:
    """Power spectrum times mel filters, [B, T] float -> [B, n_mels, T // 160], in the dtype of ``pcm``."""
    hann = hann_window().to(pcm)
    spectrum = torch.stft(pcm, N_FFT, HOP, window=hann, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum[..., :-1].abs().square()
    return mel_filters(n_mels).to(pcm).T @ power


def log_mel(
    pcm: torch.Tensor,
    *,
    n_mels: int = 128,
    out_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    config: MelConfig | None = None,
    lengths: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """As ``afn_kernels.log_mel``; ``dtype`` is that of the computation: float64 for float64 samples, else float32."""
    dtype = dtype or (torch.float64 if pcm.dtype == torch.float64 else torch.float32)
    x = pcm.to(dtype) / 32768 if pcm.dtype == torch.int16 else pcm.to(dtype)
    if config is not None:
        features = front_end(x, config, lengths).to(out_dtype)
        return features if out is None else out.copy_(features)
    if len(x) == 0:
        return x.new_empty(0, n_mels, x.shape[1] // HOP, dtype=out_dtype) if out is None else out
    log_energy = mel_energies(x, n_mels).clamp(min=1e-10).log10()
    log_energy = torch.maximum(log_energy, log_energy.amax((1, 2), keepdim=True) - 8)
    features = ((log_energy + 4) / 4).to(out_dtype)
    return features if out is None else out.copy_(features)


def front_end(x: torch.Tensor, config: MelConfig, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Features [B, n_mels, frames] of any front end from samples [B, T], both of one float dtype."""
    frames, valid = config.frames(x.shape[1]), config.valid_frames(x.shape[1])
    if len(x) == 0:
        return x.new_empty(0, config.n_mels, frames)
    mask = None
    if lengths is not None:
        lengths = lengths.to(x.device)[:, None]
        x = torch.where(torch.arange(x.shape[1], device=x.device) < lengths, emphasised(x, config), 0)
        valid = config.valid_frames(lengths)[:, None]
    else:
        x = emphasised(x, config)
    if lengths is not None or valid < frames:
        mask = torch.arange(frames, device=x.device) < valid

    y = filters(config).to(x).T @ spectra(x, config, frames)
    if config.log:
        y = y.clamp(min=config.floor) + config.guard
        y = y.log10() if config.log == "log10" else y.log()
    if config.range is not None:
        heard = y if mask is None else y.masked_fill(~mask, -torch.inf)
        top = heard.amax((1, 2), keepdim=True) if config.top is None else torch.full_like(y[:1, :1, :1], config.top)
        y = torch.maximum(y, top - config.range)
    y = (y + config.offset) / config.divisor
    if config.normalize:
        y = normalised(y, mask, valid, config)
    return y if mask is None else torch.where(mask, y, 0)


def emphasised(x: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """x[n] − c · x[n − 1], the first sample as it is."""
    if not config.preemphasis:
        return x
    return torch.cat((x[:, :1], x[:, 1:] - config.preemphasis * x[:, :-1]), 1)


def spectra(x: torch.Tensor, config: MelConfig, frames: int) -> torch.Tensor:
    """|FFT|^power [B, n_fft // 2 + 1, frames]."""
    before, length = config.before, config.window_length
    if config.padding:
        after = max(0, (frames - 1) * config.hop_length + length - before - x.shape[1])
        x = pad(x, (before, after), mode="reflect" if config.padding == "reflect" else "constant")
    x = x.unfold(1, length, config.hop_length)[:, :frames]
    if config.remove_mean:
        x = x - x.mean(2, keepdim=True)
    if config.frame_preemphasis:
        x = x - config.frame_preemphasis * torch.cat((x[:, :, :1], x[:, :, :-1]), 2)
    spectrum = torch.view_as_real(torch.fft.rfft(x * window(config).to(x), n=config.n_fft))
    power = spectrum.square().sum(-1).transpose(1, 2)
    return power if config.power == 2 else root(power)


def root(x: torch.Tensor) -> torch.Tensor:
    """√x, with gradient 0 where x is 0."""
    return torch.where(x == 0, 1, x).sqrt() * (x != 0)


def normalised(y: torch.Tensor, mask: torch.Tensor | None, valid, config: MelConfig) -> torch.Tensor:
    """y less its mean over valid frames, over its unbiased deviation."""

    def heard(x: torch.Tensor) -> torch.Tensor:
        return x if mask is None else torch.where(mask, x, 0)

    count = torch.as_tensor(valid, device=y.device).clamp(min=1)
    y = y - heard(y).sum(2, keepdim=True) / count
    variance = heard(y).square().sum(2, keepdim=True) / (count - 1).clamp(min=1)
    if config.eps_in == "variance":
        return y / (variance + config.eps).sqrt()
    return y / (root(variance) + config.eps)
