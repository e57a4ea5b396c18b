"""The word bank: every word of the vocabulary said by every speaker of a split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.world.espeak import Espeak

WORDS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "stop", "open"),
    "es": ("arriba", "abajo", "derecha", "abre", "cierra", "alto", "luz", "gracias"),
}
# The demo keeps to WORDS: more of them cost accuracy at its size.
MORE_WORDS = {**WORDS, "de": ("danke", "licht", "rechts"), "fr": ("merci", "ouvre", "droite")}
ACCENTS = {"en": ("en-us", "en-gb"), "es": ("es", "es-419"), "de": ("de",), "fr": ("fr-fr", "fr-be")}
MAX_SECONDS = 0.8  # a longer word, slowed down, might not fit a one-second clip

# Neither a variant nor a rate nor a pitch of the held-out speakers occurs among those of training.
VARIANTS = {
    "train": (
        *("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "Alex", "Andy", "Annie", "Denis", "Hugo", "Lee"),
        *("Michael", "Mike", "adam", "belinda", "ed", "john", "linda", "max", "zac"),
        *("Andrea", "anika", "aunty", "benjamin", "grandma", "iven", "paul", "shelby"),
    ),
    "heldout": ("m7", "m8", "f4", "f5", "Alicia", "boris", "rob", "steph"),
}
RATES = {"train": (145, 170, 195), "heldout": (158, 182)}
PITCHES = {"train": (20, 45, 70), "heldout": (33, 57)}
SPLITS = tuple(VARIANTS)
# By measured fundamental: a man at most 110 Hz, a woman at least 150 Hz at these pitches.
_WOMEN = {
    *("f1", "f2", "f3", "Annie", "belinda", "linda", "Andrea", "anika", "aunty", "grandma"),
    *("f4", "f5", "Alicia", "steph"),
}
_UNCLEAR = ("zac", "shelby", "rob")  # a child, one in between, and one too hoarse to have a pitch
_PITCHES_OF = {"man": (20, 45, 33, 57), "woman": (45, 70, 57)}


@dataclass(frozen=True)
class Speaker:
    """Who speaks: an accent, a variant of its voice, words per minute, and a pitch of 0 to 99."""

    accent: str
    variant: str
    rate: int
    pitch: int


def voice_of(speaker: Speaker) -> str:
    """ "man" or "woman" where that is plain to hear, else ""."""
    if speaker.variant in _UNCLEAR:
        return ""
    voice = "woman" if speaker.variant in _WOMEN else "man"
    return voice if speaker.pitch in _PITCHES_OF[voice] else ""


@functools.cache
def speakers(split: str, language: str) -> tuple[Speaker, ...]:
    """The speakers of a split for a language, which is a key of ``MORE_WORDS``; the accents take turns."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    accents, found = ACCENTS[language], []
    for v, variant in enumerate(VARIANTS[split]):
        for r, rate in enumerate(RATES[split]):
            for p, pitch in enumerate(PITCHES[split]):
                found.append(Speaker(accents[(v + r + p) % len(accents)], variant, rate, pitch))
    return tuple(found)


# By language and word what every speaker of a split says: [n] int16 at 16 kHz, peak 0.9, speech from the first sample.
WordBank = dict[tuple[str, str], list[np.ndarray]]
_BANKS: dict[str, WordBank] = {}


def load_bank(split: str, *, on_step: Callable[[int, int], None] | None = None) -> WordBank:
    """The words of a split, synthesised at the first call of a process; arguments as in ``build_bank``."""
    if split not in _BANKS:
        _BANKS[split] = build_bank(split, on_step=on_step)
    return _BANKS[split]


def build_bank(
    split: str,
    *,
    words: dict[str, tuple[str, ...]] = MORE_WORDS,
    cast: Callable[[str, str], Sequence[Speaker]] = speakers,
    longest: float = MAX_SECONDS,
    on_step: Callable[[int, int], None] | None = None,
) -> WordBank:
    """Synthesise the words of ``split`` with a fresh engine, about 1 ms each: the same samples in every process.

    Args:
        split: "train" or "heldout".
        words: the vocabulary by language.
        cast: who says the words of a (split, language).
        longest: seconds of a word, at most.
        on_step: called as on_step(done, total) after each utterance.
    Raises:
        ImportError: the ``espeakng-loader`` package is absent.
    """
    pairs = [(language, word) for language in words for word in words[language]]
    total, done = sum(len(cast(split, language)) for language, _ in pairs), 0
    bank: WordBank = {pair: [] for pair in pairs}
    with Espeak() as engine:
        for (language, word), said in bank.items():
            for speaker in cast(split, language):
                pcm = engine.say(
                    word, voice=speaker.accent, variant=speaker.variant, rate=speaker.rate, pitch=speaker.pitch
                ).numpy()
                if (seconds := len(pcm) / SAMPLE_RATE) > longest:
                    raise ValueError(f"{word!r} by {speaker} lasts {seconds:.2f} s, over {longest} s")
                said.append(np.round(pcm * (0.9 * 32767 / np.abs(pcm).max())).astype(np.int16))
                done += 1
                if on_step:
                    on_step(done, total)
    return bank
