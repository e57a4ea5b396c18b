"""Scenes with exact truth: words in men's and women's voices, sounds and notes, and what is heard when.

Every scene is drawn from a generator of its own; an event's start is exact to the sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from afn_model.world.mixer import Event, Scene
from afn_model.world.sounds import SAMPLE_RATE, SOUNDS, coloured_noise
from afn_model.world.words import MORE_WORDS, SPLITS, WordBank, load_bank, speakers, voice_of

VOICES = ("man", "woman")
DETAILS = (*VOICES, "up", "down")  # the second thing to tell of an event: who says a word, where a note goes
SPEED = (0.93, 1.1)  # keeps men below 120 Hz and women above 140 Hz
SNR_DB = (12.0, 30.0)
GAIN_DB = (-4.0, 3.0)
LANGUAGES = {"en": "English", "es": "Spanish", "de": "German", "fr": "French"}
COMMON = tuple((language, word) for language in ("en", "es") for word in MORE_WORDS[language])
_MEDLEY = 1_000  # keeps the random streams of medleys apart from those of the axes


@dataclass(frozen=True)
class Heard(Event):
    """An event; ``voice`` says who says a word ("man" or "woman"), ``turn`` where a note goes ("up" or "down")."""

    voice: str = ""
    turn: str = ""
    language: str = ""

    @property
    def detail(self) -> str:
        """One of ``DETAILS``, or "" for a sound and for the first note of a melody."""
        return self.voice or self.turn


# Events that belong together: waves, events that start at 0, and when each is due in seconds from the block's start.
Block = list[tuple[np.ndarray, Heard, float]]


@dataclass
class Clip:
    """A finished scene: [n] int16 at 16 kHz, and its events by start."""

    pcm: np.ndarray
    events: tuple[Heard, ...]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE


class Stage(Scene):
    """A scene of so many seconds being mixed; everything random comes from ``rng``."""

    def __init__(self, rng: np.random.Generator, seconds: float, split: str, bank: WordBank):
        super().__init__(rng, int(seconds * SAMPLE_RATE), split, bank)

    def pick(self, items: Sequence):
        """One of the items, with equal chance."""
        return items[int(self.rng.integers(len(items)))]

    def say(self, language: str, word: str, *, voice: str = "", speaker: int | None = None) -> tuple[np.ndarray, Heard]:
        """A word by a man or a woman, or by the speaker of that number; its event starts at 0."""
        if speaker is None:
            speaker = self.pick(clear_speakers(self.split, language, voice or self.pick(VOICES)))
        wave, event = self.spoken(language, word, speaker, SPEED)
        heard = voice_of(speakers(self.split, language)[speaker])
        return self.gain() * wave, Heard(**vars(event), voice=heard, language=language)

    def ring(self, label: str, seconds: tuple[float, float]) -> tuple[np.ndarray, Heard]:
        """The sound ``label``, of a length drawn from ``seconds``; its event starts at 0."""
        wave, event = self.sounding(label, seconds)
        return self.gain() * wave, Heard(**vars(event))

    def gain(self) -> np.float32:
        return np.float32(10 ** (self.rng.uniform(*GAIN_DB) / 20))

    def make(self, label: str, language: str, sound_seconds: tuple[float, float]) -> tuple[np.ndarray, Heard]:
        """A word of ``language``, or a sound where that is ""."""
        return self.say(language, label) if language else self.ring(label, sound_seconds)

    def row(self, blocks: list[Block], *, gap: float = 0.12) -> list[Heard]:
        """Place blocks one after another, the free time spread at random; those past the end are left out."""
        lengths = np.array([max(at + event.end for _, event, at in block) for block in blocks])
        while len(lengths) and lengths.sum() + gap * (len(lengths) + 1) > self.seconds:
            lengths = lengths[:-1]
        n = len(lengths)
        free = self.seconds - lengths.sum() - gap * (n + 1)
        starts = np.sort(self.rng.uniform(0, free, n)) + np.cumsum(lengths) - lengths + gap * np.arange(1, n + 1)
        first = len(self.events)
        for block, start in zip(blocks, starts, strict=False):
            for wave, event, at in block:
                self.place(wave, event, start + at)
        return self.events[first:]

    def clip(self) -> Clip:
        """The scene with a background, at a random level."""
        self.background(SNR_DB)
        self.finish()
        pcm = np.rint(self.pcm * np.float32(32767)).astype(np.int16)
        return Clip(pcm, tuple(sorted(self.events, key=lambda event: event.start)))


@functools.cache
def clear_speakers(split: str, language: str, voice: str) -> tuple[int, ...]:
    """Numbers of the speakers of a split who are plainly men or women."""
    return tuple(n for n, speaker in enumerate(speakers(split, language)) if voice_of(speaker) == voice)


def things(rng: np.random.Generator, count: int, *, words: float = 0.5, once: int = 8) -> list[tuple[str, str]]:
    """Labels with their languages ("" for a sound), all different as far as there are enough of them.

    Args:
        rng: the only source of randomness.
        count: how many.
        words: share of words.
        once: where there are too few, so many still come only once.
    """
    common = list(rng.permutation(len(COMMON))) if words > 0 else []
    sounds = list(rng.permutation(len(SOUNDS))) if words < 1 else []
    names = tuple(SOUNDS)
    found = []
    while len(found) < count and (common or sounds):
        word = bool(common) and (not sounds or rng.random() < words)
        found.append(COMMON[common.pop()][::-1] if word else (names[sounds.pop()], ""))
    if len(found) < count:
        again = found[once:]
        found = found[:once] + [again[int(rng.integers(len(again)))] for _ in range(count - once)]
        found = [found[i] for i in rng.permutation(count)]
    return found


def scatter(stage: Stage, count: int, *, words: float = 0.5) -> list[Heard]:
    """Fill a stage with so many different words and sounds, one after another."""
    longest = float(np.clip(stage.seconds / (1.6 * max(count, 1)), 0.55, 1.3))
    chosen = things(stage.rng, count, words=words)
    return stage.row([[(*stage.make(label, language, (0.5, longest)), 0.0)] for label, language in chosen])


# Notes: an instrument draws its timbre once and then plays (frequency in Hz, samples) -> [samples].
Play = Callable[[float, int], np.ndarray]


def _partials(frequency: np.ndarray | float, n: int, amplitudes, decay: float = 0.0) -> np.ndarray:
    """sum_k a_k exp(-k decay t) sin(k phase), by Horner's rule on z = exp(-decay t + i phase)."""
    phase = np.cumsum(np.broadcast_to(frequency, n) * (2 * np.pi / SAMPLE_RATE))
    z = np.exp(-decay * np.arange(n) / SAMPLE_RATE + 1j * phase)
    total = np.zeros(n, complex)
    for amplitude in reversed(amplitudes):
        total = (total + amplitude) * z
    return total.imag


def _flute(rng: np.random.Generator) -> Play:
    amplitudes, breath, rate = [1, rng.uniform(0.15, 0.4), rng.uniform(0.02, 0.1)], rng.uniform(0.03, 0.08), 5.5

    def play(frequency, n):
        vibrato = 1 + 0.006 * np.sin(2 * np.pi * rate / SAMPLE_RATE * np.arange(n))
        return _partials(frequency * vibrato, n, amplitudes) + breath * coloured_noise(rng, n, slope=0, low=1000)

    return play


def _guitar(rng: np.random.Generator) -> Play:
    k, pluck = np.arange(1, 13), rng.uniform(0.12, 0.3)
    amplitudes, decay = np.abs(np.sin(np.pi * k * pluck)) / k**0.8, rng.uniform(1.5, 3)
    return lambda frequency, n: _partials(frequency, n, amplitudes, decay)


def _organ(rng: np.random.Generator) -> Play:
    amplitudes = np.zeros(8)
    amplitudes[[0, 1, 2, 3, 7]] = [1, *rng.uniform(0.6, 1, 1), *rng.uniform(0, 0.2, 1), *rng.uniform(0.4, 0.8, 2)]
    return lambda frequency, n: _partials(frequency, n, amplitudes)


def _trumpet(rng: np.random.Generator) -> Play:
    k = np.arange(1, 13)
    amplitudes = np.exp(-0.5 * ((k - rng.uniform(3, 4)) / rng.uniform(2.5, 3.5)) ** 2)

    def play(frequency, n):
        swell = np.minimum(1, np.arange(n) / (0.05 * SAMPLE_RATE))
        return swell * _partials(frequency * (1 - 0.01 * (1 - swell)), n, amplitudes)

    return play


# What plays, and the lowest and the highest first note of a rising melody in Hz.
INSTRUMENTS: dict[str, tuple[Callable[[np.random.Generator], Play], float, float]] = {
    "flute": (_flute, 520, 700),
    "guitar": (_guitar, 110, 160),
    "organ": (_organ, 180, 260),
    "trumpet": (_trumpet, 300, 400),
}
LABELS = (*(word for words in MORE_WORDS.values() for word in words), *SOUNDS, "organ", "trumpet")


def melody(stage: Stage, instrument: str, notes: int, *, up: bool, period: float) -> Block:
    """Rising or falling notes of one instrument, ``period`` seconds apart."""
    timbre, low, high = INSTRUMENTS[instrument]
    play, size = timbre(stage.rng), int(0.86 * period * SAMPLE_RATE)
    semitones = np.concatenate([[0], np.cumsum(stage.rng.integers(2, 5, notes - 1))])
    frequencies = stage.rng.uniform(low, high) * 2 ** (semitones / 12)
    edge = np.minimum(1, np.minimum(np.arange(size) / 32, np.arange(size)[::-1] / 320))
    gain, found = stage.gain(), []
    for number, frequency in enumerate(frequencies if up else frequencies[::-1]):
        wave = (play(frequency, size) * edge).astype(np.float32)
        wave *= gain / np.sqrt(np.mean(wave**2))
        turn = ("up" if up else "down") if number else ""
        event = Heard("note", instrument, 0.0, size / SAMPLE_RATE, turn=turn)
        found.append((wave, event, number * period))
    return found


def frame_labels(
    events: Sequence[Event], frames: int, *, step: float = 0.04, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is heard in the middle of each frame; of two events at once, the one that began later.

    Args:
        events: of a clip.
        frames: how many.
        step: seconds per frame.
        first: number of the first frame.
    Returns:
        ([frames] int64: 0 for background, else 1 + index in ``LABELS``;
        [frames] int64: 0 for none, else 1 + index in ``DETAILS``: 1 man, 2 woman, 3 up, 4 down).
    """
    middle = (np.arange(first, first + frames) + 0.5) * step
    labels, details = np.zeros(frames, np.int64), np.zeros(frames, np.int64)
    for event in sorted(events, key=lambda event: event.start):
        heard = slice(*np.searchsorted(middle, (event.start, event.end)))
        labels[heard] = 1 + LABELS.index(event.label)
        detail = getattr(event, "detail", "")
        details[heard] = 1 + DETAILS.index(detail) if detail else 0
    return torch.from_numpy(labels), torch.from_numpy(details)


def medley(
    seed: int, split: str, index: int, *, seconds: float = 3.0, words: float = 0.75, bank: WordBank | None = None
) -> Clip:
    """A clip full of words, sounds and notes one after another, some talking into each other, for ``frame_labels``.

    Args:
        seed, index: non-negative.
        split: "train" or "heldout".
        seconds: length of the clip, at least 2.
        words: share of words; of the others, a third are melodies.
        bank: the words of ``split``; by default ``world_bank(split)``.
    Raises:
        ValueError: a clip that is too short.
    """
    if seconds < 2:
        raise ValueError(f"a medley needs at least 2 seconds, got {seconds}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index, _MEDLEY])
    stage, start = Stage(rng, seconds, split, bank or world_bank(split)), rng.uniform(0, 0.3)
    vocabulary = [(language, word) for language in MORE_WORDS for word in MORE_WORDS[language]]
    while True:
        if rng.random() < words:
            block = [(*stage.say(*stage.pick(vocabulary)), 0.0)]
        elif rng.random() < 2 / 3:
            block = [(*stage.ring(stage.pick(tuple(SOUNDS)), (0.4, 1.0)), 0.0)]
        else:
            name, count = stage.pick(tuple(INSTRUMENTS)), int(rng.integers(2, 5))
            block = melody(stage, name, count, up=rng.random() < 0.5, period=rng.uniform(0.18, 0.45))
        end = start + block[-1][2] + block[-1][1].end
        if end > seconds:
            return stage.clip()
        for wave, event, at in block:
            stage.place(wave, event, start + at)
        start = end
        start += rng.uniform(-0.12, 0.0) if rng.random() < 0.15 else rng.uniform(0.02, 0.3)


def world_bank(split: str, folder=None, *, on_step: Callable[[int, int], None] | None = None) -> WordBank:
    """The word bank of a split in all four languages; arguments as in ``load_bank``."""
    return load_bank(split, folder, words=MORE_WORDS, on_step=on_step)


def shifted(events: Sequence[Heard], start: float, end: float) -> tuple[Heard, ...]:
    """The events within a part of a clip, in seconds from the beginning of the part."""
    inside = [event for event in events if start <= event.start and event.end <= end]
    return tuple(replace(event, start=event.start - start, end=event.end - start) for event in inside)
