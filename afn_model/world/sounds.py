"""Synthesised sounds: each is drawn with continuous random parameters, so that no two instances are alike.

A sound is a function (rng, n) -> [n] samples at 16 kHz that is audible from its first 20 ms on; ``sound`` scales it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afn_model.world.instruments import flute_tune, guitar_tune
from afn_model.world.synthesis import SAMPLE_RATE, around, coloured_noise, harmonics, phase, repeat, times

_ATTACK, _RELEASE = 32, 320  # samples: no click at the edges, and still an onset exact to 2 ms


def sound(name: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """One fresh instance of the sound ``name``.

    Args:
        name: a key of ``SOUNDS``.
        rng: the only source of randomness.
        n: samples at 16 kHz, at least 800.
    Returns:
        [n] float32, peak 1.
    Raises:
        ValueError: unknown name, or n too small.
    """
    if name not in SOUNDS:
        raise ValueError(f"unknown sound {name!r}; there are {', '.join(SOUNDS)}")
    if n < 800:
        raise ValueError(f"a sound needs at least 800 samples, got {n}")
    wave = SOUNDS[name](rng, n).astype(np.float32, copy=False)
    wave[:_ATTACK] *= np.linspace(0, 1, _ATTACK, dtype=np.float32)
    wave[-_RELEASE:] *= np.linspace(1, 0, _RELEASE, dtype=np.float32)
    return wave / np.abs(wave).max()


def alarm(rng, n):
    """Beeps of constant pitch, on and off."""
    frequency, period = rng.uniform(800, 2200), rng.uniform(0.16, 0.4)
    size = int(period * rng.uniform(0.45, 0.6) * SAMPLE_RATE)
    beep = harmonics(np.full(size, frequency), [1, 0, rng.uniform(0.2, 0.5), 0, rng.uniform(0, 0.3)])
    return repeat(rng, n, (period, period), lambda i: beep)


def bell(rng, n):
    """Inharmonic partials, struck once or again, the high ones fading first."""
    t, f0, decay = times(n), rng.uniform(350, 900), rng.uniform(1.5, 4)
    wave = np.zeros(n, np.float32)
    for ratio in (0.5, 1, 1.19, 1.56, 2, 2.66, 3.01, 4.1):
        ratio *= rng.uniform(0.99, 1.01)
        wave += rng.uniform(0.3, 1) * np.exp(-decay * ratio * t) * np.sin(np.float32(2 * np.pi * f0 * ratio) * t)
    return repeat(rng, n, around(rng, 0.7, 0.3), lambda i: wave)


def bird(rng, n):
    """Chirps: quick sweeps between 2 and 6 kHz."""
    low, high = rng.uniform(2000, 3200), rng.uniform(4000, 6000)
    size, bend = int(rng.uniform(0.05, 0.12) * SAMPLE_RATE), rng.uniform(0.5, 2)
    rise = np.linspace(0, 1, size) ** bend
    sweep = low + (high - low) * (rise if rng.random() < 0.5 else 1 - rise)
    envelope = np.sin(np.linspace(0.15, np.pi, size)).astype(np.float32)
    return repeat(rng, n, around(rng, 0.16, 0.35), lambda i: envelope * np.sin(phase(sweep * rng.uniform(0.93, 1.07))))


def clapping(rng, n):
    """Hand claps: short bursts of noise around 1.2 kHz."""
    centre, size = rng.uniform(900, 1600), int(0.06 * SAMPLE_RATE)
    envelope = np.exp(-times(size) / rng.uniform(0.006, 0.014))

    def clap(i):
        return rng.uniform(0.6, 1) * envelope * coloured_noise(rng, size, slope=0, low=0.5 * centre, high=1.8 * centre)

    return repeat(rng, n, (0.07, rng.uniform(0.14, 0.24)), clap)


def clock(rng, n):
    """Tick and tock: two damped resonances in turn."""
    size, damping = int(0.03 * SAMPLE_RATE), rng.uniform(0.002, 0.005)
    pitch = rng.uniform(2000, 3200)
    ticks = [
        np.exp(-times(size) / damping) * np.sin(2 * np.pi * frequency * times(size))
        for frequency in (pitch, pitch * rng.uniform(0.7, 0.85))
    ]
    period = rng.uniform(0.2, 0.45)
    return repeat(rng, n, (period, period), lambda i: ticks[i % 2])


def dog(rng, n):
    """Barks: a falling voiced burst with a noisy edge."""
    pitch, size = rng.uniform(300, 550), int(rng.uniform(0.11, 0.2) * SAMPLE_RATE)
    ramp = np.linspace(0, 1, size)
    envelope = (np.exp(-4 * ramp) * np.minimum(1, 40 * ramp)).astype(np.float32)
    amplitudes = rng.uniform(0.4, 1, 8) * np.exp(-0.5 * ((np.arange(1, 9) - 2.5) / 1.8) ** 2)

    def bark(i):
        glide = pitch * rng.uniform(0.92, 1.08) * (1.15 - 0.5 * ramp)
        rasp = coloured_noise(rng, size, slope=-0.5, low=600, high=4000)
        return envelope * (harmonics(glide, amplitudes) + 0.25 * rasp)

    return repeat(rng, n, around(rng, 0.36, 0.3), bark)


def engine(rng, n):
    """A low hum with many harmonics, throbbing at half its rate."""
    f0, drift = rng.uniform(35, 70), rng.uniform(-0.15, 0.25)
    frequency = f0 * (1 + drift * np.linspace(0, 1, n))
    amplitudes = rng.uniform(0.3, 1, 14) * np.arange(1, 15) ** -0.5
    throb = 1 + rng.uniform(0.3, 0.6) * np.cos(phase(frequency / 2))
    return throb * harmonics(frequency, amplitudes) + 0.3 * coloured_noise(rng, n, slope=-1, low=50, high=1500)


def rain(rng, n):
    """A steady hiss with drops on top."""
    wave = coloured_noise(rng, n, slope=rng.uniform(-0.4, 0.3), low=rng.uniform(800, 1500))
    drops = rng.random(n, np.float32) < rng.uniform(0.001, 0.004)
    return wave + np.convolve(drops * rng.uniform(2, 6), np.exp(-np.arange(24) / 5), "same")


def siren(rng, n):
    """A tone sweeping up and down."""
    low, high, rate = rng.uniform(450, 650), rng.uniform(1000, 1500), rng.uniform(1, 2.5)
    turn = 0.5 - 0.5 * np.cos(2 * np.pi * (rate * times(n) + rng.random()))
    return harmonics(low * (high / low) ** turn, [1, rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.4)])


def thunder(rng, n):
    """A crack, then a rolling rumble."""
    t = times(n)
    roll = 0.6 + 0.4 * np.sin(2 * np.pi * (rng.uniform(1.5, 4) * t + rng.random()))
    rumble = coloured_noise(rng, n, slope=-2, low=30, high=300) * np.exp(-rng.uniform(0.3, 1.2) * t) * roll
    return rumble + rng.uniform(1, 2) * np.exp(-t / 0.05) * coloured_noise(rng, n, slope=-1, low=50, high=3000)


SOUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "alarm": alarm,
    "bell": bell,
    "bird": bird,
    "clapping": clapping,
    "clock": clock,
    "dog": dog,
    "engine": engine,
    "flute": flute_tune,
    "guitar": guitar_tune,
    "rain": rain,
    "siren": siren,
    "thunder": thunder,
}
