"""Musical instruments: timbres that play given notes, and the tunes that flute and guitar play by themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afn_model.world.synthesis import SAMPLE_RATE, around, coloured_noise, harmonics, repeat, times

# An instrument draws its timbre once and then plays (frequency in Hz, samples) -> [samples].
Play = Callable[[float, int], np.ndarray]


def _breath(rng: np.random.Generator, n: int, high: float = 8000) -> np.ndarray:
    return coloured_noise(rng, n, slope=0, low=1000, high=high)


def _plucked(point: float) -> np.ndarray:
    """Amplitudes of a string's harmonics, plucked at this share of its length."""
    k = np.arange(1, 13)
    return np.abs(np.sin(np.pi * k * point)) / k**0.8


def _flute(rng: np.random.Generator) -> Play:
    amplitudes, breath, rate = [1, rng.uniform(0.15, 0.4), rng.uniform(0.02, 0.1)], rng.uniform(0.03, 0.08), 5.5

    def play(frequency: float, n: int) -> np.ndarray:
        vibrato = 1 + 0.006 * np.sin(2 * np.pi * rate * times(n))
        return harmonics(frequency * vibrato, amplitudes) + breath * _breath(rng, n)

    return play


def _guitar(rng: np.random.Generator) -> Play:
    amplitudes, decay = _plucked(rng.uniform(0.12, 0.3)), rng.uniform(1.5, 3)
    return lambda frequency, n: harmonics(np.full(n, frequency), amplitudes, decay)


def _organ(rng: np.random.Generator) -> Play:
    amplitudes = np.zeros(8)
    amplitudes[[0, 1, 2, 3, 7]] = [1, *rng.uniform(0.6, 1, 1), *rng.uniform(0, 0.2, 1), *rng.uniform(0.4, 0.8, 2)]
    return lambda frequency, n: harmonics(np.full(n, frequency), amplitudes)


def _trumpet(rng: np.random.Generator) -> Play:
    k = np.arange(1, 13)
    amplitudes = np.exp(-0.5 * ((k - rng.uniform(3, 4)) / rng.uniform(2.5, 3.5)) ** 2)

    def play(frequency: float, n: int) -> np.ndarray:
        swell = np.minimum(1, times(n) / 0.05)
        return swell * harmonics(frequency * (1 - 0.01 * (1 - swell)), amplitudes)

    return play


# The timbre, and the lowest and the highest first note of a rising melody in Hz.
INSTRUMENTS: dict[str, tuple[Callable[[np.random.Generator], Play], float, float]] = {
    "flute": (_flute, 520, 700),
    "guitar": (_guitar, 110, 160),
    "organ": (_organ, 180, 260),
    "trumpet": (_trumpet, 300, 400),
}


def flute_tune(rng: np.random.Generator, n: int) -> np.ndarray:
    """Sustained notes with vibrato and breath."""
    note, breath = rng.uniform(440, 800), rng.uniform(0.03, 0.1)
    length = int(rng.uniform(0.3, 0.6) * SAMPLE_RATE)
    steps = 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 12], n // length + 1) / 12)
    vibrato = 1 + 0.008 * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * times(n))
    wave = harmonics(note * np.repeat(steps, length)[:n] * vibrato, [1, rng.uniform(0.2, 0.5), rng.uniform(0.05, 0.2)])
    return wave + breath * _breath(rng, n, 6000)


def guitar_tune(rng: np.random.Generator, n: int) -> np.ndarray:
    """Plucked notes of a scale, the high harmonics fading first."""
    note, decay = rng.uniform(110, 220), rng.uniform(0.8, 2)
    amplitudes, size = _plucked(rng.uniform(0.12, 0.3)), int(0.6 * SAMPLE_RATE)

    def pluck(i: int) -> np.ndarray:
        return harmonics(np.full(size, note * 2 ** (rng.choice([0, 2, 4, 7, 9, 12]) / 12)), amplitudes, decay)

    return repeat(rng, n, around(rng, 0.28, 0.3), pluck)
