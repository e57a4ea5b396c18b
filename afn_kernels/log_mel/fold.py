"""The folded DFT of 400 samples: eight products with [64, 64] matrices instead of one with [400, 402].

With x1 = x[n], x2 = x[400 − n], x3 = x[200 − n], x4 = x[200 + n] and the window w, for 0 ≤ n ≤ 100 and 0 ≤ k ≤ 100:

    Re X[k] = Σ (w[n] (x1 + x2) ± w[200 − n] (x3 + x4)) cos(2πkn / 400),   + for even k
    Im X[k] = Σ (w[n] (x1 − x2) ∓ w[200 − n] (x3 − x4)) sin(2πkn / 400),   − for even k

and X[200 − k] has the same terms, those of odd n of the opposite sign in its real part, of even n in its imaginary
part. So even and odd n, even and odd k, real and imaginary parts are eight products of at most 51 by 51.

A float32 operand is the sum of two float16 numbers, high and low, of 11 bits each; the product low · low, 2^-24 of
the whole, is left out. Float16's short exponent is made up by powers of two, which round nothing.
"""

import torch

from afn_kernels._kept import kept
from afn_kernels.log_mel.tables import N_FFT, hann_window, mel_filters

WIDTH = 64  # of a folded operand: 51 or 50, padded
MELS = 128
HALF, QUARTER = N_FFT // 2, N_FFT // 4


def _split(x: torch.Tensor, low_scale: float = 1.0) -> torch.Tensor:
    """High and low part, stacked in front of the last two axes; the low part times ``low_scale``."""
    high = x.half()
    return torch.stack([high, ((x - high.double()) * low_scale).half()], -3)


def windows() -> torch.Tensor:
    """[parity of n, (w[n], w[200 − n]), 64] float64; n = 0 and n = 100 meet themselves and count by halves."""
    n = torch.arange(QUARTER + 1)
    w = torch.stack([hann_window()[n], hann_window()[HALF - n]])
    w[:, 0] /= 2
    w[:, QUARTER] /= 2
    out = torch.zeros(2, 2, WIDTH, dtype=torch.float64)
    out[0, :, :51], out[1, :, :50] = w[:, 0::2], w[:, 1::2]
    return out


def matrices() -> torch.Tensor:
    """[parity of k, parity of n, (cos, sin), 64 n, 64 k] float64."""
    j = torch.arange(51)
    out = torch.zeros(2, 2, 2, WIDTH, WIDTH, dtype=torch.float64)
    for k_odd in (0, 1):
        for n_odd in (0, 1):
            n, k = 2 * j[: 51 - n_odd] + n_odd, 2 * j[: 51 - k_odd] + k_odd
            angle = (torch.outer(n, k) % N_FFT).double() * (2 * torch.pi / N_FFT)
            out[k_odd, n_odd, 0, : len(n), : len(k)] = angle.cos()
            out[k_odd, n_odd, 1, : len(n), : len(k)] = angle.sin()
    return out


def filters(n_mels: int) -> torch.Tensor:
    """[parity of k, (bin k, bin 200 − k), 128, 64 k] float64; bin 100 is counted once."""
    weights = mel_filters(n_mels)
    out = torch.zeros(2, 2, MELS, WIDTH, dtype=torch.float64)
    for k_odd in (0, 1):
        k = torch.arange(k_odd, QUARTER + 1, 2)
        out[k_odd, 0, :n_mels, : len(k)] = weights[k].T
        out[k_odd, 1, :n_mels, : len(k)] = weights[HALF - k].T * (k < QUARTER)
    return out


@kept
def constants(n_mels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Windows float32, matrices · 2^14 and filters · 2^16 (their low part · 2^27) split in float16, on ``device``."""
    made = windows().float(), _split(matrices() * 2**14), _split(filters(n_mels) * 2**16, 2**11)
    return tuple(x.contiguous().to(device) for x in made)
