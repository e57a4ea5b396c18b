"""Recordings for copies of benchmarks: words, sentences and sounds of the synthetic world, in any container; tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.files import write_text
from afn_model.world.espeak import Espeak
from afn_model.world.instruments import INSTRUMENTS
from afn_model.world.sounds import SOUNDS, sound
from afn_model.world.words import WORDS

NAMES = tuple(SOUNDS)
SPOKEN = WORDS["en"]
PLAYED = tuple(INSTRUMENTS)
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", None),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".sph": ("NIST", "PCM_16"),
}


class Sounds:
    """A source of recordings that are a function of the seed and of what was asked before.

    Raises:
        ValueError: the package of the speech synthesiser is missing.
    """

    def __init__(self, seed: int = 0):
        self._synthesiser: Espeak | None = None
        self.begin(seed)
        _ = self.espeak  # a missing package is told before anything is written

    def begin(self, seed: int) -> None:
        """What comes from now on is a function of the seed."""
        self.random = np.random.default_rng(seed)
        if self._synthesiser is not None:
            self._synthesiser.__exit__()
        self._synthesiser = None  # its state runs on from one utterance to the next

    @property
    def espeak(self) -> Espeak:
        """The speech synthesiser."""
        if self._synthesiser is None:
            try:
                self._synthesiser = Espeak()
            except ImportError:
                raise ValueError("the demo suite speaks with eSpeak NG: pip install 'afn-kernels[demo]'") from None
        return self._synthesiser

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.random.integers(len(items)))]

    def others(self, items: Sequence[Any], right: Any, count: int) -> list[Any]:
        """So many of the items that are not the right one, in a random order."""
        rest = [item for item in items if item != right]
        return [rest[place] for place in self.random.permutation(len(rest))[:count]]

    def sound(self, name: str, seconds: float = 1.5) -> np.ndarray:
        """One of ``NAMES``, [n] float32 with half a second around it."""
        return self._around(0.5 * sound(name, self.random, int(seconds * SAMPLE_RATE)))

    def note(self, instrument: str, seconds: float = 1.0) -> np.ndarray:
        """A note of one of ``PLAYED``."""
        timbre, low, high = INSTRUMENTS[instrument]
        wave = timbre(self.random)(self.random.uniform(low, high), int(seconds * SAMPLE_RATE))
        return self._around((0.5 / np.abs(wave).max() * wave).astype(np.float32))

    def speech(self, text: str, *, voice: str = "en-us", variant: str = "m3", around: float = 0.25) -> np.ndarray:
        """A text said aloud; voices are languages such as "de" or accents such as "en-gb"."""
        return self._around(0.8 * self.espeak.say(text, voice=voice, variant=variant).numpy(), around)

    def _around(self, wave: np.ndarray, seconds: float = 0.25) -> np.ndarray:
        quiet = 1e-3 * self.random.standard_normal(len(wave) + int(2 * seconds * SAMPLE_RATE)).astype(np.float32)
        at = int(seconds * SAMPLE_RATE)
        quiet[at : at + len(wave)] += wave
        return quiet


def encoded(pcm: np.ndarray, suffix: str = ".wav") -> bytes:
    """The bytes of a recording's file, by its suffix, which is one of ``FORMATS``."""
    import soundfile

    file = io.BytesIO()
    container, subtype = FORMATS[suffix]
    soundfile.write(file, pcm.clip(-1, 1), SAMPLE_RATE, format=container, subtype=subtype)
    return file.getvalue()


def save(path: Path, pcm: np.ndarray) -> Path:
    """Writes a recording in the container that its path names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pcm, path.suffix))
    return path


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], end: str = "\n") -> None:
    """A table as the benchmarks publish them: a line of names, quotes where they are needed."""
    table = io.StringIO()
    csv.writer(table, lineterminator=end).writerows([columns, *rows])
    write_text(path, table.getvalue())
