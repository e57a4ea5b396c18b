"""Scenes for stand-ins: voices, sounds and tunes on one line of time, with the exact truth of what is heard when."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.world.espeak import Espeak
from afn_model.world.instruments import INSTRUMENTS
from afn_model.world.sounds import SOUNDS, sound
from afn_model.world.words import ACCENTS, Speaker, voice_of

NOISE = 1e-3  # of all recordings: no two pieces have the same samples
TUNES = ("flute", "guitar")  # sounds that are tunes
# Voices that a recogniser on a CPU understands.
PLAIN_VOICES = (
    "m1",
    "m2",
    "m3",
    "m4",
    "m6",
    "f1",
    "f2",
    "f3",
    "Denis",
    "Mike",
    "belinda",
    "ed",
    "linda",
    "max",
    "grandma",
)
PACES, PITCHES = (145, 155, 165, 175, 185), (20, 33, 45, 57, 70)
EFFECTS = tuple(name for name in SOUNDS if name not in TUNES)


class HeardScene:
    """A scene that grows.

    Args:
        espeak: that speaks.
        rng: the only source of randomness.
    """

    def __init__(self, espeak: Espeak, rng: np.random.Generator):
        self.espeak, self.rng = espeak, rng
        self.placed: list[tuple[int, np.ndarray]] = []
        self.events: list[dict[str, Any]] = []
        self.end = 0.4  # seconds

    def say(self, sentence: str, speaker: Speaker, language: str, *, at: float | None = None, cut: float = 1e9) -> None:
        """A sentence after what is there, or at a moment; it breaks off after so many seconds."""
        wave = (
            0.7
            * self.espeak.say(
                sentence, voice=speaker.accent, variant=speaker.variant, rate=speaker.rate, pitch=speaker.pitch
            ).numpy()
        )
        whole, wave = len(wave) / SAMPLE_RATE, wave[: int(min(cut, 1e6) * SAMPLE_RATE)].copy()
        if cut < whole:
            wave[-160:] *= np.linspace(1, 0, 160, dtype=np.float32)
        start = self._place(wave, at)
        told = {"kind": "word", "voice": voice_of(speaker), "speaker": f"{speaker.accent} {speaker.variant}"}
        for word, begin, stop in word_times(sentence, whole):
            if begin < cut:
                times = {"start": round(start + begin, 3), "end": round(start + min(stop, cut), 3)}
                self.events.append({**told, "label": word, "language": language, **times})

    def ring(self, name: str, seconds: float, *, at: float | None = None, level: float = 0.3) -> None:
        """A sound after what is there, or at a moment."""
        wave = level * sound(name, self.rng, int(seconds * SAMPLE_RATE))
        kind = "note" if name in TUNES else "sound"
        self._heard(kind, name, self._place(wave.astype(np.float32), at), seconds)

    def play(self, name: str, notes: int = 6) -> None:
        """A tune of an instrument."""
        timbre, low, high = INSTRUMENTS[name]
        play, note, size = timbre(self.rng), self.rng.uniform(low, high), SAMPLE_RATE // 2
        steps = self.rng.choice([0, 2, 4, 5, 7, 9], notes)
        wave = np.concatenate([play(note * 2 ** (step / 12), size) for step in steps])
        start = self._place((0.35 * wave / np.abs(wave).max()).astype(np.float32), None)
        self._heard("note", name, start, notes / 2)

    def wait(self, low: float = 0.6, high: float = 1.4) -> None:
        self.end += float(self.rng.uniform(low, high))

    def samples(self) -> np.ndarray:
        """[n] float32."""
        count = int((self.end + 0.4) * SAMPLE_RATE)
        pcm = (NOISE * self.rng.standard_normal(count)).astype(np.float32)
        for first, wave in self.placed:
            pcm[first : first + len(wave)] += wave[: count - first]
        return pcm.clip(-1, 1)

    def truth(self) -> list[dict[str, Any]]:
        """Events by start."""
        return sorted(self.events, key=lambda one: (one["start"], one["end"], one["label"]))

    def _heard(self, kind: str, label: str, start: float, seconds: float) -> None:
        times = {"start": round(start, 3), "end": round(start + seconds, 3)}
        self.events.append({"kind": kind, "label": label, "voice": "", "speaker": "", **times})

    def _place(self, wave: np.ndarray, at: float | None) -> float:
        first = int((self.end if at is None else at) * SAMPLE_RATE)
        self.placed.append((first, wave))
        self.end = max(self.end, (first + len(wave)) / SAMPLE_RATE)
        return first / SAMPLE_RATE


def word_times(sentence: str, seconds: float) -> list[tuple[str, float, float]]:
    """(word, start, end) of a sentence that takes so long: the longer a word is written, the longer it is said. The
    ends of the sentence are exact, those of words between are near."""
    words = re.findall(r"[\w']+", sentence.lower())
    ends = np.cumsum([0, *(len(word) + 1 for word in words)]) * seconds / sum(len(word) + 1 for word in words)
    return [(word, float(ends[place]), float(ends[place + 1])) for place, word in enumerate(words)]


def cast(rng: np.random.Generator, language: str, used: set[Speaker], count: int) -> list[Speaker]:
    """Speakers that nobody else has, the first two a man and a woman."""
    known = [
        Speaker(accent, variant, *way)
        for accent, variant in product(ACCENTS[language], PLAIN_VOICES)
        for way in product(PACES, PITCHES)
        if accent != "en-gb"  # the recogniser is American
    ]
    found: list[Speaker] = []
    for place in rng.permutation(len(known)):
        one = known[place]
        other = all(voice_of(one) != voice_of(before) for before in found[:1])
        if one not in used and voice_of(one) and other and len(found) < count:
            found.append(one)
    used |= set(found)
    return found


def talk(
    scene: HeardScene, voices: Sequence[Speaker], sentences: Sequence[str], language: str, *, rings: bool = False
) -> None:
    """Sentences in turn; where there are several voices, every fourth sentence is interrupted by the next one. With
    ``rings`` a sound is heard after every fifth, and pauses are long."""
    for place, sentence in enumerate(sentences):
        voice = voices[place % len(voices)]
        if len(voices) > 1 and place % 4 == 3:
            begin = max(one["end"] for one in scene.events) - 0.9
            scene.events = [
                {**one, "end": min(one["end"], round(begin + 0.4, 3))}
                for one in scene.events
                if one["start"] < begin + 0.4
            ]
            first, wave = scene.placed[-1]
            scene.placed[-1] = (first, wave[: int((begin + 0.4) * SAMPLE_RATE) - first])
            scene.say(sentence, voice, language, at=begin)
        else:
            scene.say(sentence, voice, language)
        scene.wait()
        if rings and place % 5 == 4:
            scene.ring(EFFECTS[int(scene.rng.integers(len(EFFECTS)))], 2.0)
            scene.wait()


def mixed(scene: HeardScene, voices: Sequence[Speaker], sentences: Sequence[str], language: str) -> None:
    """Sentences with sounds between them, and over some."""
    for place, sentence in enumerate(sentences):
        name = EFFECTS[int(scene.rng.integers(len(EFFECTS)))]
        if place % 2:
            scene.ring(name, 2.0, level=0.3)
            scene.wait(0.3, 0.8)
            scene.say(sentence, voices[0], language)
        else:
            begin = scene.end
            scene.say(sentence, voices[0], language)
            scene.ring(name, 2.0, at=begin + 0.8, level=0.08)
        scene.wait()


def sounds(scene: HeardScene, count: int) -> None:
    """Sounds and tunes."""
    for place in range(count):
        if place % 3 == 2:
            scene.play(list(INSTRUMENTS)[int(scene.rng.integers(len(INSTRUMENTS)))])
        else:
            scene.ring(EFFECTS[int(scene.rng.integers(len(EFFECTS)))], float(scene.rng.uniform(1.5, 3.0)))
        scene.wait()
