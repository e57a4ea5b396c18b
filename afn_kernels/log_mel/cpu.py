"""The compiled kernels of csrc/cpu: frames as SIMD lanes, sparse mel bands; for Whisper a 16 x 25 prime-factor FFT, for
any other front end one of mixed radix."""

import math

import torch

from afn_kernels import _check, _cpu
from afn_kernels._kept import kept
from afn_kernels.log_mel.mel_config import MelConfig
from afn_kernels.log_mel.tables import HOP, filters, hann_window, mel_filters, window

MAPPED = 32 << 20  # bytes that malloc maps for the call and unmaps when they are freed, whatever was freed before


def bands(bank: torch.Tensor) -> tuple[list[int], list[int], list[float]]:
    """Of each filter of a bank [bins, n_mels]: its first bin that is not 0, how many follow, and all their weights."""
    first, count, weights = [], [], []
    for filter_ in bank.T:
        bins = filter_.nonzero().flatten().tolist() or [0]
        first.append(bins[0])
        count.append(bins[-1] - bins[0] + 1)
        weights += filter_[bins[0] : bins[-1] + 1].tolist()
    return first, count, weights


@kept
def mel_plan(n_mels: int) -> _cpu.MelPlan:
    """The window and the non-zero part of each mel filter, as the extension takes them."""
    return _cpu.MelPlan(hann_window().tolist(), *bands(mel_filters(n_mels)))


@kept
def any_plan(config: MelConfig) -> _cpu.AnyMelPlan:
    """The tables of a front end, as the extension takes them."""
    settings = _cpu.MelSettings()
    for name, value in {
        "n_fft": config.n_fft,
        "win": config.window_length,
        "hop": config.hop_length,
        "before": config.before,
        "pad": {None: 0, "reflect": 1, "zeros": 2}[config.padding],
        "emphasis": config.preemphasis,
        "frame_emphasis": config.frame_preemphasis,
        "remove_mean": config.remove_mean,
        "magnitude": config.power == 1,
        "log_unit": {None: 0.0, "ln": 1.0, "log10": 1 / math.log(10)}[config.log],
        "floor": config.floor,
        "guard": config.guard,
        "top": 0 if config.range is None else 1 if config.top is None else 2,
        "top_value": config.top or 0.0,
        "range": config.range or 0.0,
        "offset": config.offset,
        "divisor": config.divisor,
        "normalise": config.normalize is not None,
        "eps": config.eps,
        "eps_in_variance": config.eps_in == "variance",
    }.items():
        setattr(settings, name, value)
    return _cpu.AnyMelPlan(settings, window(config).tolist(), *bands(filters(config)))


def log_mel(
    pcm: torch.Tensor,
    *,
    n_mels: int = 128,
    out_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    config: MelConfig | None = None,
    lengths: torch.Tensor | None = None,
    threads: int | None = None,
    level: str = "",
) -> torch.Tensor:
    """As ``afn_kernels.log_mel``; ``threads`` defaults to PyTorch's, ``level`` to $AFN_SIMD or the fastest."""
    if pcm.stride(1) != 1:
        pcm = pcm.contiguous()
    rows, samples = pcm.shape
    direct = out is not None and out.dtype == torch.float32 and out.is_contiguous()
    shape = (rows, config.n_mels, config.frames(samples)) if config else (rows, n_mels, samples // HOP)
    features = out if direct else torch.empty(shape, dtype=torch.float32, device="cpu")
    if not direct and features.nbytes >= MAPPED:
        _cpu.use_huge_pages(features.data_ptr(), features.nbytes)
    threads = threads or torch.get_num_threads()
    whole, stride = pcm.dtype == torch.int16, pcm.stride(0)
    if config is None:
        plan = mel_plan(n_mels)
        _cpu.log_mel(pcm.data_ptr(), whole, rows, samples, stride, plan, features.data_ptr(), threads, level)
    else:
        valid = [samples] * rows if lengths is None else lengths.tolist()
        _check.lengths_within("log_mel", valid, samples)  # a graph comes here without having looked
        counts = [config.valid_frames(n) for n in valid]
        tables, to = any_plan(config), features.data_ptr()
        _cpu.log_mel_any(pcm.data_ptr(), whole, samples, stride, valid, counts, tables, shape[2], to, threads, level)
    if direct:
        return out
    return features.to(out_dtype) if out is None else out.copy_(features)


def mel_energies(pcm: torch.Tensor, begin: int, end: int, out: torch.Tensor) -> int:
    """Mel energies of frames begin to end of one row [T] float32 into out [n_mels, frames]; the largest as bits."""
    plan = mel_plan(len(out))
    return _cpu.mel_energies(pcm.data_ptr(), False, len(pcm), begin, end, plan, out.data_ptr(), out.shape[1])


def log_scale(energies: torch.Tensor, largest: int) -> torch.Tensor:
    """Clamped and scaled logarithm of the mel energies of one row, whose largest is given as bits."""
    features = torch.empty_like(energies)
    _cpu.log_scale(energies.data_ptr(), features.data_ptr(), energies.numel(), largest)
    return features
