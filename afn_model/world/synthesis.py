"""Building blocks of synthesised sounds: tones of many harmonics, coloured noise, repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE


def coloured_noise(
    rng: np.random.Generator, n: int, *, slope: float, low: float = 20, high: float = 8000
) -> np.ndarray:
    """Gaussian noise with power ~ f^slope between ``low`` and ``high`` Hz: 0 is white, -1 pink, -2 brown.

    Args:
        rng: the only source of randomness.
        n: samples at 16 kHz.
        slope: exponent of the power spectrum.
        low, high: band edges in Hz.
    Returns:
        [n] float32, root mean square 1; circular when n is a power of two.
    """
    size = 1 << (n - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    band = (frequency >= low) & (frequency <= high)
    spectrum = np.zeros(len(frequency), np.complex64)
    spectrum[band] = rng.standard_normal(2 * band.sum(), np.float32).view(np.complex64)
    spectrum[band] *= (frequency[band] ** (slope / 2)).astype(np.float32)
    noise = np.fft.irfft(spectrum, size)[:n].astype(np.float32)
    return noise / np.sqrt(np.mean(noise**2))


def times(n: int) -> np.ndarray:
    """[n] float32: seconds at each sample."""
    return np.arange(n, dtype=np.float32) / SAMPLE_RATE


def phase(frequency: np.ndarray) -> np.ndarray:
    """[n] float32: phase of an oscillator whose frequency in Hz is given at each sample."""
    # Wrapped in float64: a float32 running sum drifts within seconds.
    return np.remainder(2 * np.pi / SAMPLE_RATE * np.cumsum(frequency, dtype=np.float64), 2 * np.pi).astype(np.float32)


def harmonics(frequency: np.ndarray, amplitudes: Sequence[float], decay: float = 0.0) -> np.ndarray:
    """sum_k a_k exp(-k decay t) sin(k phase), by Horner's rule on z = exp(-decay t + i phase).

    Args:
        frequency: [n] Hz at each sample.
        amplitudes: of harmonics 1, 2, ...
        decay: of the first harmonic, 1/s.
    Returns:
        [n] float32.
    """
    angle = phase(frequency)
    z = np.empty(len(angle), np.complex64)
    z.real, z.imag = np.cos(angle), np.sin(angle)
    z *= np.exp(-decay * times(len(angle)))
    total = np.zeros_like(z)
    for amplitude in reversed(amplitudes):
        total += np.complex64(amplitude)
        total *= z
    return total.imag


def repeat(
    rng: np.random.Generator, n: int, gap: tuple[float, float], event: Callable[[int], np.ndarray]
) -> np.ndarray:
    """[n] float32: events from sample 0 on, ``gap`` seconds from start to start; ``event(i)`` makes the i-th."""
    wave, at, i = np.zeros(n, np.float32), 0, 0
    while at < n:
        piece = event(i)[: n - at]
        wave[at : at + len(piece)] += piece
        at += int(rng.uniform(*gap) * SAMPLE_RATE)
        i += 1
    return wave


def around(rng: np.random.Generator, centre: float, spread: float) -> tuple[float, float]:
    """A narrow range about a value drawn within ``spread`` (relative) of ``centre``."""
    value = centre * rng.uniform(1 - spread, 1 + spread)
    return 0.93 * value, 1.07 * value
