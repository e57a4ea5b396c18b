"""Recordings of the world with the exact truth of when there is speech and music."""

from __future__ import annotations

import functools

import numpy as np

from afn_model.eval.copies.sounds import Sounds
from afn_model.world.instruments import INSTRUMENTS
from afn_model.world.sounds import sound

SENTENCES = (
    "we will meet again tomorrow morning at nine",
    "please open the window and close the door",
    "she said that the train was late again",
    "the quick brown fox jumps over the lazy dog",
)
VARIANTS = ("m3", "f2", "m1", "f4")
NOISE = 1e-3


@functools.cache
def sounds() -> Sounds:
    return Sounds(0)


def spoken(text: str, variant: str = "m3", voice: str = "en-us") -> np.ndarray:
    """Speech from the first sample to the last."""
    return 0.8 * sounds().espeak.say(text, voice=voice, variant=variant).numpy()


def played(rng: np.random.Generator) -> np.ndarray:
    """Six notes of an instrument, three seconds."""
    timbre, low, high = INSTRUMENTS[list(INSTRUMENTS)[int(rng.integers(len(INSTRUMENTS)))]]
    play, note = timbre(rng), rng.uniform(low, high)
    wave = np.concatenate([play(note * 2 ** (step / 12), 8000) for step in (0, 2, 4, 7, 4, 2)])
    return 0.4 * wave / np.abs(wave).max()


def scene(seed: int, seconds: float = 20.0) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Sentences, tunes and sounds with pauses between them: ([n] float32 at 16 kHz, [(kind, start, end)])."""
    rng, pieces, truth, at = np.random.default_rng(seed), list[np.ndarray](), [], 0
    while at < 16_000 * seconds:
        chosen = int(rng.integers(5))
        if chosen < 3:
            kind = "speech"
            wave = spoken(SENTENCES[int(rng.integers(4))], VARIANTS[int(rng.integers(4))])
        elif chosen == 3:
            kind, wave = "music", played(rng)
        else:
            kind = ("rain", "bell", "engine", "bird", "dog", "thunder")[int(rng.integers(6))]
            wave = 0.3 * sound(kind, rng, 32_000)
        pause = int(rng.uniform(0.6, 1.5) * 16_000)
        truth.append((kind, (at + pause) / 16_000, (at + pause + len(wave)) / 16_000))
        pieces += [np.zeros(pause), wave]
        at += pause + len(wave)
    pcm = np.concatenate(pieces)
    return (pcm + NOISE * rng.standard_normal(len(pcm))).astype(np.float32), truth


def frames(spans: list[tuple[str, float, float]], kind: str, count: int) -> np.ndarray:
    """[count] whether a kind is heard in the middle of each 10 ms."""
    middle, found = (np.arange(count) + 0.5) / 100, np.zeros(count, bool)
    for name, start, end in spans:
        found |= (name == kind) & (middle >= start) & (middle < end)
    return found


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of frames."""
    return float((found & truth).sum() / max(1, (found | truth).sum()))
