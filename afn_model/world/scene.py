"""Scenes with exact truth: words in men's and women's voices, sounds and notes, and what is heard when.

Every scene is drawn from a generator of its own; an event's start is exact to the sample.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.world.instruments import INSTRUMENTS
from afn_model.world.sounds import SOUNDS, sound
from afn_model.world.synthesis import coloured_noise
from afn_model.world.words import MORE_WORDS, SPLITS, WORDS, load_bank, speakers, voice_of

VOICES = ("man", "woman")
DETAILS = (*VOICES, "up", "down")  # the second thing to tell of an event: who says a word, where a note goes
LANGUAGES = {"en": "English", "es": "Spanish", "de": "German", "fr": "French"}
COMMON = tuple((language, word) for language in ("en", "es") for word in MORE_WORDS[language])
# Every word of the training split passes through a microphone of its own: gains in dB at these frequencies in Hz.
EQUALISER_HZ = (0, 500, 1000, 2000, 4000, 8000)
EQUALISER_DB = (-12.0, 4.0)
PEAK_DB = (-20.0, -1.0)
_NOISE_SAMPLES = 1 << 18


@dataclass(frozen=True)
class Style:
    """What the scenes of a kind have in common.

    Args:
        words: vocabulary by language.
        clear: only voices that are plainly a man's or a woman's, and the details to tell of them.
        speed: playback speed of a word: pitch and duration that no speaker of the bank has exactly.
        gain_db: level of an event.
        snr_db: events, at root mean square 1, to background; None leaves the background out.
        spoken: share of words among the events of a medley.
        played: share of melodies among its other events.
        overlap: share of its events that begin before the last one ended.
    """

    words: dict[str, tuple[str, ...]] = field(default_factory=lambda: MORE_WORDS)
    clear: bool = True
    speed: tuple[float, float] = (0.93, 1.1)  # keeps men below 120 Hz and women above 140 Hz
    gain_db: tuple[float, float] = (-4.0, 3.0)
    snr_db: tuple[float, float] | None = (12.0, 30.0)
    spoken: float = 0.75
    played: float = 1 / 3
    overlap: float = 0.15

    @property
    def vocabulary(self) -> list[tuple[str, str]]:
        """(language, word) of every word."""
        return [(language, word) for language, words in self.words.items() for word in words]

    @property
    def labels(self) -> tuple[str, ...]:
        """Everything that is heard in medleys."""
        played = [name for name in INSTRUMENTS if self.played and name not in SOUNDS]
        return (*(word for _, word in self.vocabulary), *SOUNDS, *played)

    @property
    def details(self) -> tuple[str, ...]:
        return DETAILS if self.clear else ()


WORLD = Style()
BASIC = Style(
    WORDS,
    clear=False,
    speed=(0.87, 1.22),
    gain_db=(-6.0, 6.0),
    snr_db=(10.0, 30.0),
    spoken=0.92,
    played=0.0,
    overlap=0.0,
)
LABELS = WORLD.labels


@dataclass(frozen=True)
class Heard:
    """Something heard from ``start`` to ``end`` seconds: a word, a sound or a note."""

    kind: str  # "word", "sound" or "note"
    label: str
    start: float
    end: float
    speaker: str = ""  # of a word
    voice: str = ""  # of a word: "man" or "woman", "" where that is not plain to hear
    turn: str = ""  # of a note after another: "up" or "down"
    language: str = ""  # of a word

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


class Scene:
    """A scene of so many seconds being mixed; everything random comes from ``rng``."""

    def __init__(self, rng: np.random.Generator, seconds: float, split: str, style: Style = WORLD):
        self.rng, self.split, self.style = rng, split, style
        self.pcm = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
        self.events: list[Heard] = []

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    def pick(self, items: Sequence):
        """One of the items, with equal chance."""
        return items[int(self.rng.integers(len(items)))]

    def speaker(self, language: str, voice: str = "") -> int:
        """The number of a speaker: a man or a woman where the style has clear voices only."""
        if self.style.clear:
            return self.pick(clear_speakers(self.split, language, voice or self.pick(VOICES)))
        return int(self.rng.integers(len(speakers(self.split, language))))

    def spoken(self, language: str, word: str, number: int) -> tuple[np.ndarray, Heard]:
        """``word`` by the speaker of that number, at root mean square 1; its event starts at 0."""
        pcm = load_bank(self.split)[language, word][number].astype(np.float32)
        positions = np.arange(0, len(pcm) - 1, self.rng.uniform(*self.style.speed))
        wave = np.interp(positions, np.arange(len(pcm)), pcm).astype(np.float32)
        if self.split == "train":
            wave = equalised(wave, self.rng.uniform(*EQUALISER_DB, len(EQUALISER_HZ)))
        speaker = speakers(self.split, language)[number]
        name = f"{speaker.accent}+{speaker.variant} rate {speaker.rate} pitch {speaker.pitch}"
        heard = Heard("word", word, 0.0, len(wave) / SAMPLE_RATE, name, voice_of(speaker), language=language)
        return unit(wave), heard

    def sounding(self, label: str, seconds: tuple[float, float]) -> tuple[np.ndarray, Heard]:
        """The sound ``label`` of a length drawn from ``seconds``, at root mean square 1; its event starts at 0."""
        wave = sound(label, self.rng, int(self.rng.uniform(*seconds) * SAMPLE_RATE))
        return unit(wave), Heard("sound", label, 0.0, len(wave) / SAMPLE_RATE)

    def say(self, language: str, word: str, *, voice: str = "", speaker: int | None = None) -> tuple[np.ndarray, Heard]:
        """A word by a man or a woman, or by the speaker of that number, at the style's level."""
        wave, event = self.spoken(language, word, self.speaker(language, voice) if speaker is None else speaker)
        return self.gain() * wave, event

    def ring(self, label: str, seconds: tuple[float, float]) -> tuple[np.ndarray, Heard]:
        """The sound ``label`` of a length drawn from ``seconds``, at the style's level."""
        wave, event = self.sounding(label, seconds)
        return self.gain() * wave, event

    def gain(self) -> np.float32:
        return np.float32(10 ** (self.rng.uniform(*self.style.gain_db) / 20))

    def make(self, label: str, language: str, sound_seconds: tuple[float, float]) -> tuple[np.ndarray, Heard]:
        """A word of ``language``, or a sound where that is ""."""
        return self.say(language, label) if language else self.ring(label, sound_seconds)

    def place(self, wave: np.ndarray, event: Heard, start: float) -> None:
        """Add ``wave`` so that its first sample lands on the sample nearest to ``start`` seconds."""
        at = round(start * SAMPLE_RATE)
        end = min(at + len(wave), len(self.pcm))
        self.pcm[at:end] += wave[: end - at]
        self.events.append(replace(event, start=at / SAMPLE_RATE, end=end / SAMPLE_RATE))

    def somewhere(self, wave: np.ndarray) -> float:
        """A start in seconds, uniform over those at which the whole of ``wave`` fits."""
        return self.rng.integers(len(self.pcm) - len(wave) + 1) / SAMPLE_RATE

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

    def background(self) -> None:
        """Add coloured noise at a ratio drawn from the style's."""
        noise = _noises(self.split)
        row = noise[self.rng.integers(len(noise))]
        level = 10 ** (-self.rng.uniform(*self.style.snr_db) / 20)
        at, n = int(self.rng.integers(len(row))), len(self.pcm)
        if at + n <= len(row):
            self.pcm += np.float32(level) * row[at : at + n]
        else:
            self.pcm += np.float32(level) * np.take(row, np.arange(at, at + n), mode="wrap")

    def clip(self) -> Clip:
        """The scene with its background, at a random level."""
        if self.style.snr_db is not None:
            self.background()
        self.pcm *= np.float32(10 ** (self.rng.uniform(*PEAK_DB) / 20)) / np.abs(self.pcm).max()
        pcm = np.rint(self.pcm * np.float32(32767)).astype(np.int16)
        return Clip(pcm, tuple(sorted(self.events, key=lambda event: event.start)))


def equalised(wave: np.ndarray, gains_db: np.ndarray) -> np.ndarray:
    """A wave through a microphone with these gains at ``EQUALISER_HZ``."""
    spectrum = np.fft.rfft(wave, 1 << (len(wave) - 1).bit_length())
    hertz = np.linspace(0, SAMPLE_RATE / 2, len(spectrum))
    spectrum *= 10 ** (np.interp(hertz, EQUALISER_HZ, gains_db) / 20)
    return np.fft.irfft(spectrum)[: len(wave)].astype(np.float32)


def unit(wave: np.ndarray) -> np.ndarray:
    """A wave at root mean square 1."""
    return wave / np.sqrt(np.mean(wave**2))


@functools.cache
def _noises(split: str) -> np.ndarray:
    rng = np.random.default_rng([1, SPLITS.index(split)])
    return np.stack([coloured_noise(rng, _NOISE_SAMPLES, slope=slope) for slope in (0, -0.5, -1, -1.5, -2)])


@functools.cache
def clear_speakers(split: str, language: str, voice: str) -> tuple[int, ...]:
    """Numbers of the speakers of a split who are plainly men or women."""
    return tuple(n for n, speaker in enumerate(speakers(split, language)) if voice_of(speaker) == voice)


def things(rng: np.random.Generator, count: int, *, words: float = 0.5, once: int = 8) -> list[tuple[str, str]]:
    """Labels with their languages ("" for a sound); a label comes twice only where the world has fewer than ``count``.

    Args:
        rng: the only source of randomness.
        count: how many.
        words: share of words.
        once: labels that come exactly once even then; the others are drawn again to make up ``count``.
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


def scatter(scene: Scene, count: int, *, words: float = 0.5) -> list[Heard]:
    """Fill a scene with so many different words and sounds, one after another."""
    longest = float(np.clip(scene.seconds / (1.6 * max(count, 1)), 0.55, 1.3))
    chosen = things(scene.rng, count, words=words)
    return scene.row([[(*scene.make(label, language, (0.5, longest)), 0.0)] for label, language in chosen])


def melody(scene: Scene, instrument: str, notes: int, *, up: bool, period: float) -> Block:
    """Rising or falling notes of one instrument, ``period`` seconds apart."""
    timbre, low, high = INSTRUMENTS[instrument]
    play, size = timbre(scene.rng), int(0.86 * period * SAMPLE_RATE)
    semitones = np.concatenate([[0], np.cumsum(scene.rng.integers(2, 5, notes - 1))])
    frequencies = scene.rng.uniform(low, high) * 2 ** (semitones / 12)
    edge = np.minimum(1, np.minimum(np.arange(size) / 32, np.arange(size)[::-1] / 320))
    gain, found = scene.gain(), []
    for number, frequency in enumerate(frequencies if up else frequencies[::-1]):
        wave = (play(frequency, size) * edge).astype(np.float32)
        wave *= gain / np.sqrt(np.mean(wave**2))
        turn = ("up" if up else "down") if number else ""
        found.append((wave, Heard("note", instrument, 0.0, size / SAMPLE_RATE, turn=turn), number * period))
    return found


def shifted(events: Sequence[Heard], start: float, end: float) -> tuple[Heard, ...]:
    """The events within a part of a clip, in seconds from the beginning of the part."""
    inside = [event for event in events if start <= event.start and event.end <= end]
    return tuple(replace(event, start=event.start - start, end=event.end - start) for event in inside)
