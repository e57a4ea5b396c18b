"""Inverse short-time Fourier transform with overlap-add, whole or in chunks."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op
from afn_kernels.istft.windows import overlapped

LARGEST = 256  # samples of a window whose transform is a matrix product; a fast transform takes over above


def _supports(spectrum, window, *, hop, state) -> str:
    if len(window) > LARGEST:
        return f"a window of {len(window)} samples is above {LARGEST}, where a fast transform does less"
    return _triton.supports(spectrum)


OP = Op(
    "istft",
    (
        _triton.implementation(
            "afn_kernels.istft.boundary:istft",
            _supports,
            avoid=lambda spectrum, *_, **__: _triton.avoid(spectrum),
            why="transform, window and overlap-add in one pass over the spectrum",
        ),
        Impl("reference", "afn_kernels.istft.reference:istft", why="plain PyTorch"),
    ),
)


def istft(
    spectrum: torch.Tensor,
    window: torch.Tensor,
    hop: int,
    state: torch.Tensor | None = None,
    *,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """s[n] = Σ_f window[n − f · hop] · irfft(spectrum[f])[n − f · hop] / Σ_i window[n mod hop + i · hop]².

    Frame f covers samples f · hop to f · hop + W − 1 of s, which begins with the first sample of frame 0. Every sample
    is divided as in the middle of a long signal, so the first and the last W − hop samples are those of frames that
    are not all here. Where frame f stands for the hop of samples that ends with its window, as in a decoder that looks
    W − hop samples ahead, the F · hop samples are ``torch.cat((pcm, tail), 1)[:, W - hop :]``.

    In a stream the ``tail`` of a chunk is the ``state`` of the next one: the ``pcm`` of all chunks and the last tail,
    one after another, are those of the whole within rounding. Products and sums are float32 (float64 for float64),
    never TF32. The imaginary parts of the first and the last bin count as 0; any other NaN or infinity shows in samples
    of its frame, and in no others.

    Args:
        spectrum: [B, F, W / 2 + 1, 2], real and imaginary parts, any floating dtype; B or F may be 0.
        window: [W] float32 (or float64 beside float64), W even and at least 2; of Triton W is at most 256.
        hop: samples from frame to frame, 1 to W; the squared windows may not add up to 0 anywhere.
        state: [B, W − hop], the tail of the frames before, float32 (float64 beside float64); None is zeros.
        impl: "auto" or the name of an implementation.

    Returns:
        pcm [B, F · hop], samples that later frames do not change, and tail [B, W − hop], sums that they are added to;
        float32, or float64 for float64. Differentiable in spectrum and state, not in the window.

    Raises:
        ValueError: shapes or dtypes that do not fit; an implementation that cannot run here.

    Source: Griffin and Lim, 1984, doi:10.1109/TASSP.1984.1164317; as a vocoder's head: Siuzdak, 2023, arXiv:2306.00814.
    """
    _check.same_dtype_and_device("istft", spectrum=spectrum)
    _check.beside("istft", "window", window, spectrum)
    size, wide = window.numel(), torch.promote_types(spectrum.dtype, torch.float32)
    shaped = spectrum.dim() == 4 and window.dim() == 1 and size >= 2 and size % 2 == 0
    if not shaped or spectrum.shape[2:] != (size // 2 + 1, 2):
        raise _check.misfit("istft", spectrum=(spectrum, "B F W/2+1 2"), window=(window, "W"))
    if not 1 <= hop <= size:
        raise ValueError(f"istft: hop is {hop}, expected 1 to the window's {size}")
    if window.dtype != wide:
        raise ValueError(f"istft: window is {window.dtype}, expected {wide} beside a spectrum of {spectrum.dtype}")
    if state is not None:
        _check.beside("istft", "state", state, spectrum)
        if state.shape != (spectrum.shape[0], size - hop) or state.dtype != wide:
            found = f"state is {state.dtype} {list(state.shape)}"
            raise ValueError(f"istft: {found}, expected {wide} {[spectrum.shape[0], size - hop]}")
    window = window.detach()
    if _check.readable(window) and not overlapped(window, hop).all():
        raise ValueError(f"istft: the squared windows of {size} samples every {hop} add up to 0 somewhere")
    return OP.choose(impl, spectrum, window, hop=hop, state=state)(spectrum, window, hop=hop, state=state)
