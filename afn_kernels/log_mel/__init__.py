"""Log-mel features of 16 kHz audio, as Whisper's encoder takes them."""

from functools import lru_cache

import torch

from afn_kernels import _cuda, _triton
from afn_kernels._library import plain
from afn_kernels._registry import Impl, Op
from afn_kernels.cpu import available as _extension_available
from afn_kernels.log_mel import boundary
from afn_kernels.log_mel.tables import HOP

SHORTEST = 320  # the shortest whole number of hops that reflect padding by 200 samples allows


_cpu_available = lru_cache(_extension_available)


def _cpu_supports(pcm: torch.Tensor, **_) -> str:
    if pcm.device.type != "cpu":
        return f"pcm is on {pcm.device.type}"
    if pcm.dtype == torch.float64:
        return "float64 samples are computed by the reference"
    return _gradient(pcm)


def _gradient(pcm: torch.Tensor) -> str:
    return "it has no gradient; the reference has" if pcm.requires_grad and torch.is_grad_enabled() else ""


def _triton_supports(pcm: torch.Tensor, **_) -> str:
    if pcm.shape[1] > 2**31 - 1024:
        return f"a row of {pcm.shape[1]} samples has offsets beyond 32 bits"
    return _triton.supports(pcm, dtypes=(torch.float32,)) or _gradient(pcm)


def _cuda_supports(pcm: torch.Tensor, **_) -> str:
    return _cuda.supports(pcm, dtypes=(torch.float32,)) or _gradient(pcm)


OP = Op(
    "log_mel",
    (
        _triton.implementation(
            "afn_kernels.log_mel.boundary:log_mel",
            _triton_supports,
            avoid=lambda pcm, **_: _triton.avoid(pcm),
            why="one launch; the spectrum never leaves the chip",
        ),
        _cuda.implementation(
            "afn_kernels.log_mel.boundary:log_mel_cuda",
            _cuda_supports,
            why="a Fourier transform in registers, one launch",
        ),
        Impl(
            "cpu",
            "afn_kernels.log_mel.cpu:log_mel",
            available=_cpu_available,
            supports=_cpu_supports,
            why="compiled SIMD kernel; python -m bench.log_mel measures it against transformers",
        ),
        Impl("reference", "afn_kernels.log_mel.reference:log_mel", why="plain PyTorch, any device, differentiable"),
    ),
)


def log_mel(
    pcm: torch.Tensor,
    *,
    n_mels: int = 128,
    out_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """y = (max(x, max(x) − 8) + 4) / 4 with x = log10(max(mel · |STFT(pcm)|², 1e-10)), the maximum over the row.

    Frames of 400 samples every 160, centred, with reflected ends and a periodic Hann window; the last one is dropped.
    A row is one window of audio with whatever padding it holds. A sample that is NaN, infinite or too large to square
    makes its whole row NaN, because the row's maximum is then no number.

    Args:
        pcm: [B, T] samples at 16 kHz: float32 (or float64) in [−1, 1], or int16, which counts 1/32768; T is a
            multiple of 160, at least 320.
        n_mels: mel bins, Slaney scale and norm, 0 to 8,000 Hz: 128 or 80.
        out_dtype: floating dtype of the result.
        out: [B, n_mels, T / 160] of ``out_dtype`` to write into, which spares the page faults of fresh memory.
        impl: "auto" or the name of an implementation.

    Returns:
        [B, n_mels, T / 160], or ``out``. Differentiable with respect to ``pcm`` by the reference, without ``out``.

    Raises:
        ValueError: a shape, dtype or length outside the above; an implementation that cannot run here.

    Source: Radford et al., 2022, arXiv:2212.04356, section 2.2.
    """
    if pcm.dim() != 2 or pcm.dtype not in (torch.float32, torch.float64, torch.int16):
        raise ValueError(f"log_mel: pcm is {pcm.dtype} {list(pcm.shape)}, not [B, T] of float32, float64 or int16")
    if pcm.shape[1] % HOP or pcm.shape[1] < SHORTEST:
        raise ValueError(f"log_mel: {pcm.shape[1]} samples, not a multiple of {HOP} of at least {SHORTEST}")
    if n_mels not in (80, 128):
        raise ValueError(f"log_mel: n_mels={n_mels}, not 80 or 128")
    if not out_dtype.is_floating_point:
        raise ValueError(f"log_mel: out_dtype={out_dtype} is not a floating dtype")
    if out is not None:
        _check_out(pcm, n_mels, out_dtype, out)
    if torch.compiler.is_compiling() or not plain(pcm):
        found = boundary.FORWARD(pcm, n_mels, out_dtype, impl)
        return found if out is None else out.copy_(found)
    options = {"n_mels": n_mels, "out_dtype": out_dtype, "out": out}
    return OP.choose(impl, pcm, **options)(pcm, **options)


def _check_out(pcm: torch.Tensor, n_mels: int, out_dtype: torch.dtype, out: torch.Tensor) -> None:
    shape = [pcm.shape[0], n_mels, pcm.shape[1] // HOP]
    if list(out.shape) != shape or out.dtype != out_dtype or out.device != pcm.device:
        found = f"{out.dtype} {list(out.shape)} on {out.device}"
        raise ValueError(f"log_mel: out is {found}, not {out_dtype} {shape} on {pcm.device}")
    if pcm.requires_grad and torch.is_grad_enabled():
        raise ValueError("log_mel: out= has no gradient, and pcm requires one")


def features(pcm: torch.Tensor, n_mels: int, out_dtype: torch.dtype, impl: str) -> torch.Tensor:
    """What the registered op afn::log_mel runs."""
    pcm = pcm.detach()
    options = {"n_mels": n_mels, "out_dtype": out_dtype, "out": None}
    return OP.choose(impl, pcm, **options)(pcm, **options)
