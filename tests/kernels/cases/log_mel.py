"""Rows of clicks, one a frame at most: spectra without near-empty bins, whose logarithms have no bound on error.

Noise, tones and speech are compared by their mean and by amplitude, in test_log_mel.py.
"""

import torch

from tests.kernels.harness import Case


def clicks(g: torch.Generator, frames: int, rows: int = 2, loud: float = 1.0) -> dict[str, torch.Tensor]:
    pcm = torch.zeros(rows, 160 * max(frames, 2), dtype=torch.float64)
    at = torch.arange(240, pcm.shape[1], 400)
    pcm[:, at] = loud * (0.5 + torch.rand(rows, len(at), generator=g, dtype=torch.float64) / 2)
    return {"pcm": pcm}


def padded(g: torch.Generator, frames: int) -> dict[str, torch.Tensor]:
    """A third of audio before or after zeros, as a short recording in a window of 30 s."""
    pcm = clicks(g, frames, 2)["pcm"]
    pcm[0, pcm.shape[1] // 3 :] = 0
    pcm[1, : pcm.shape[1] * 2 // 3] = 0
    return {"pcm": pcm}


def case(name: str, inputs=clicks, impls=("triton", "cuda"), **options) -> Case:
    return Case("log_mel", name, inputs, dtypes=(torch.float32,), impls=impls, **options)


CASES = [
    case("clicks", far=("pcm",)),
    case("80 mels", options={"n_mels": 80}),
    case("one row of two frames", lambda g, n: clicks(g, n, 1), size=2),
    case("1000 frames", size=1000),
    # Programs of Triton have 256 frames in its interpreter; tests/kernels/log_mel/test_cuda.py pads for the other.
    Case("log_mel", "padded windows", padded, dtypes=(torch.float32,), impls=("triton",), size=300),
    case("no rows", lambda g, n: clicks(g, n, 0)),
    case("silence", lambda g, n: clicks(g, n, 3, 0.0)),
    case("whispers", lambda g, n: clicks(g, n, 3, 1e-3)),
    case("above full scale", lambda g, n: clicks(g, n, 3, 300.0)),
]
