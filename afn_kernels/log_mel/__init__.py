"""Log-mel features of audio, as Whisper's encoder and other front ends take them."""

import torch

from afn_kernels import _check, _cuda, _device, _triton
from afn_kernels._library import has_tangent, plain
from afn_kernels._registry import Impl, Op
from afn_kernels.cpu import usable as _cpu_available
from afn_kernels.log_mel import boundary
from afn_kernels.log_mel.mel_config import MelConfig, decoded
from afn_kernels.log_mel.tables import HOP

SHORTEST = 320  # the shortest whole number of hops that reflect padding by 200 samples allows
WHISPER = {n_mels: MelConfig.whisper(n_mels) for n_mels in (80, 128)}
WHISPER_TEXTS = tuple(config.text for config in WHISPER.values())
CONFIGS = "config=MelConfig.whisper(n_mels), or another, takes it"
OTHER = "its transform is Whisper's, of 400 samples every 160"


def _cpu_supports(pcm: torch.Tensor, **_) -> str:
    if pcm.device.type != "cpu":
        return f"pcm is on {pcm.device.type}"
    if pcm.dtype == torch.float64:
        return "float64 samples are computed by the reference"
    return _gradient(pcm)


def _gradient(pcm: torch.Tensor) -> str:
    wanted = (pcm.requires_grad and torch.is_grad_enabled()) or has_tangent(pcm)
    return "it has no gradient; the reference has" if wanted else ""


def _triton_supports(pcm: torch.Tensor, config: MelConfig | None = None, **_) -> str:
    if config is not None:
        return OTHER
    if pcm.shape[1] > 2**31 - 1024:
        return f"a row of {pcm.shape[1]} samples has offsets beyond 32 bits"
    return _triton.supports(pcm, dtypes=(torch.float32,)) or _gradient(pcm) or _uncompiled(pcm.device)


def _uncompiled(device: torch.device) -> str:
    """Triton 3.6 ends in an error of its own, "parent layout must have at least rank >= 2"."""
    return "Triton does not compile it for sm_100" if _device.capability(device)[0] == 10 else ""


def _cuda_supports(pcm: torch.Tensor, config: MelConfig | None = None, **_) -> str:
    if config is not None:
        return OTHER
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
    config: MelConfig | None = None,
    lengths: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """y = (max(x, max(x) − 8) + 4) / 4 with x = log10(max(mel · |STFT(pcm)|², 1e-10)), the maximum over the row.

    Frames of 400 samples every 160, centred, with reflected ends and a periodic Hann window; the last one is dropped.
    A row is one window of audio with whatever padding it holds. A sample that is NaN, infinite or too large to square
    makes its whole row NaN, because the row's maximum is then no number.

    That is Whisper's front end. ``config`` describes any other, with a formula of its own: ``MelConfig``. It takes rows
    of any length that has a frame, and ``lengths`` says which of their samples are audio.

    Args:
        pcm: [B, T] samples at 16 kHz: float32 (or float64) in [−1, 1], or int16, which counts 1/32768; T is a
            multiple of 160, at least 320. With ``config``, T is at least ``config.shortest``, at its sampling rate.
        n_mels: mel bins, Slaney scale and norm, 0 to 8,000 Hz: 128 or 80. With ``config``, that says it.
        out_dtype: floating dtype of the result.
        out: [B, n_mels, frames] of ``out_dtype`` to write into, which spares the page faults of fresh memory.
        config: another front end, or Whisper's for rows of any length.
        lengths: [B] int32 or int64, how many samples of each row are audio. Those beyond count as 0, frames from
            ``config.valid_frames(length)`` on are in no maximum, mean or deviation, and their features are 0. With
            reflected padding the row is reflected at T, not at its length.
        impl: "auto" or the name of an implementation.

    Returns:
        [B, n_mels, T / 160], with ``config`` [B, config.n_mels, config.frames(T)], or ``out``. Differentiable with
        respect to ``pcm`` by the reference, without ``out``.

    Raises:
        ValueError: a shape, dtype or length outside the above; an implementation that cannot run here.

    Source: Radford et al., 2022, arXiv:2212.04356, section 2.2.
    """
    _check.are_tensors("log_mel", pcm=pcm)
    if pcm.dim() != 2 or pcm.dtype not in (torch.float32, torch.float64, torch.int16):
        raise ValueError(f"log_mel: pcm is {pcm.dtype} {list(pcm.shape)}, not [B, T] of float32, float64 or int16")
    if config is not None or lengths is not None:
        return _of_config(pcm, n_mels, out_dtype, out, config, lengths, impl)
    if pcm.shape[1] % HOP or pcm.shape[1] < SHORTEST:
        raise ValueError(f"log_mel: {pcm.shape[1]} samples, not a multiple of {HOP} of at least {SHORTEST}; {CONFIGS}")
    if n_mels not in (80, 128):
        raise ValueError(f"log_mel: n_mels={n_mels}, not 80 or 128; {CONFIGS}")
    if not out_dtype.is_floating_point:
        raise ValueError(f"log_mel: out_dtype={out_dtype} is not a floating dtype")
    if out is not None:
        _check_out(pcm, (pcm.shape[0], n_mels, pcm.shape[1] // HOP), out_dtype, out)
    if torch.compiler.is_compiling() or not plain(pcm):
        found = boundary.FORWARD(pcm, n_mels, out_dtype, impl)
        return found if out is None else out.copy_(found)
    options = {"n_mels": n_mels, "out_dtype": out_dtype, "out": out}
    return OP.choose(impl, pcm, **options)(pcm, **options)


def _of_config(pcm, n_mels, out_dtype, out, config, lengths, impl) -> torch.Tensor:
    if config is None:
        if n_mels not in WHISPER:
            raise ValueError(f"log_mel: n_mels={n_mels}, not 80 or 128; {CONFIGS}")
        config = WHISPER[n_mels]
    if n_mels not in (128, config.n_mels):
        raise ValueError(f"log_mel: n_mels={n_mels} beside a config of {config.n_mels}; leave n_mels out")
    rows, samples = pcm.shape
    if samples < config.shortest:
        raise ValueError(f"log_mel: {samples} samples, and this config needs at least {config.shortest}")
    if lengths is None and samples % HOP == 0 and samples >= SHORTEST and config.text in WHISPER_TEXTS:
        return log_mel(pcm, n_mels=config.n_mels, out_dtype=out_dtype, out=out, impl=impl)
    if not out_dtype.is_floating_point:
        raise ValueError(f"log_mel: out_dtype={out_dtype} is not a floating dtype")
    if out is not None:
        _check_out(pcm, (rows, config.n_mels, config.frames(samples)), out_dtype, out)
    if lengths is not None:
        _check_lengths(pcm, lengths)
    if torch.compiler.is_compiling() or not plain(pcm, lengths):
        found = boundary.FORWARD_ANY(pcm, lengths, config.text, out_dtype, impl)
        return found if out is None else out.copy_(found)
    options = {"n_mels": config.n_mels, "out_dtype": out_dtype, "out": out, "config": config, "lengths": lengths}
    return OP.choose(impl, pcm, **options)(pcm, **options)


def _check_lengths(pcm: torch.Tensor, lengths: torch.Tensor) -> None:
    if list(lengths.shape) != [pcm.shape[0]] or lengths.dtype not in (torch.int32, torch.int64):
        found = f"{lengths.dtype} {list(lengths.shape)}"
        raise ValueError(f"log_mel: lengths are {found}, not int32 or int64 [{pcm.shape[0]}], one for each row")
    if _check.readable(lengths):
        _check.lengths_within("log_mel", lengths.tolist(), pcm.shape[1])


def _check_out(pcm: torch.Tensor, shape: tuple[int, ...], out_dtype: torch.dtype, out: torch.Tensor) -> None:
    if out.shape != shape or out.dtype != out_dtype or out.device != pcm.device:
        found = f"{out.dtype} {list(out.shape)} on {out.device}"
        raise ValueError(f"log_mel: out is {found}, not {out_dtype} {list(shape)} on {pcm.device}")
    if pcm.requires_grad and torch.is_grad_enabled():
        raise ValueError("log_mel: out= has no gradient, and pcm requires one")


def features(pcm: torch.Tensor, n_mels: int, out_dtype: torch.dtype, impl: str) -> torch.Tensor:
    """What the registered op afn::log_mel runs."""
    pcm = pcm.detach()
    options = {"n_mels": n_mels, "out_dtype": out_dtype, "out": None}
    return OP.choose(impl, pcm, **options)(pcm, **options)


def features_any(
    pcm: torch.Tensor, lengths: torch.Tensor | None, config: str, out_dtype: torch.dtype, impl: str
) -> torch.Tensor:
    """What the registered op afn::log_mel_any runs."""
    pcm = pcm.detach()
    wanted = decoded(config)
    options = {"n_mels": wanted.n_mels, "out_dtype": out_dtype, "out": None, "config": wanted, "lengths": lengths}
    return OP.choose(impl, pcm, **options)(pcm, **options)
