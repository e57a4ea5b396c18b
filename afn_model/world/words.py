"""The word bank: every word of the demo vocabulary said by every speaker of a split, synthesised once and kept."""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from afn_model.world.espeak import SAMPLE_RATE, Espeak

WORDS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "stop", "open"),
    "es": ("arriba", "abajo", "derecha", "abre", "cierra", "alto", "luz", "gracias"),
}
# More languages for scenes that go beyond the demo's.
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
    """The speakers of `split` ("train" or "heldout") for `language` ("en" or "es"); the accents take turns."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    accents, found = ACCENTS[language], []
    for v, variant in enumerate(VARIANTS[split]):
        for r, rate in enumerate(RATES[split]):
            for p, pitch in enumerate(PITCHES[split]):
                found.append(Speaker(accents[(v + r + p) % len(accents)], variant, rate, pitch))
    return tuple(found)


@dataclass
class WordBank:
    """All utterances of one split, end to end, ordered by language, word and speaker.

    Utterance i is `pcm[offsets[i] : offsets[i + 1]]`; speech starts at its first sample.
    """

    split: str
    pcm: torch.Tensor  # [N] int16, 16 kHz, each utterance at peak 0.9
    offsets: torch.Tensor  # [utterances + 1] int64
    words: dict[str, tuple[str, ...]] = field(default_factory=lambda: WORDS)

    def __post_init__(self):
        self._first, first = {}, 0
        for language, words in self.words.items():
            for word in words:
                self._first[language, word] = first
                first += len(speakers(self.split, language))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def utterance(self, language: str, word: str, speaker: int) -> torch.Tensor:
        """[n] int16: `word` said by `speakers(split, language)[speaker]`."""
        i = self._first[language, word] + speaker
        return self.pcm[self.offsets[i] : self.offsets[i + 1]]


def build_bank(
    split: str, *, words: dict[str, tuple[str, ...]] = WORDS, on_step: Callable[[int, int], None] | None = None
) -> WordBank:
    """Synthesise the words of `split` with a fresh engine, about 1 ms each: the same samples in every process.

    Args:
        split: "train" or "heldout".
        words: the vocabulary by language.
        on_step: called as on_step(done, total) after each utterance.
    Raises:
        ImportError: the `espeakng-loader` package is absent.
    """
    plan = [(word, speaker) for lang in words for word in words[lang] for speaker in speakers(split, lang)]
    pieces = []
    with Espeak() as engine:
        for done, (word, speaker) in enumerate(plan, 1):
            pcm = engine.say(
                word, voice=speaker.accent, variant=speaker.variant, rate=speaker.rate, pitch=speaker.pitch
            ).numpy()
            if len(pcm) > MAX_SECONDS * SAMPLE_RATE:
                raise ValueError(f"{word!r} by {speaker} lasts {len(pcm) / SAMPLE_RATE:.2f} s, over {MAX_SECONDS} s")
            pieces.append(np.round(pcm * (0.9 * 32767 / np.abs(pcm).max())).astype(np.int16))
            if on_step:
                on_step(done, len(plan))
    offsets = np.cumsum([0] + [len(piece) for piece in pieces])
    return WordBank(split, torch.from_numpy(np.concatenate(pieces)), torch.from_numpy(offsets), words)


_BANKS: dict[str, WordBank] = {}


def load_bank(
    split: str,
    folder: str | Path | None = None,
    *,
    words: dict[str, tuple[str, ...]] = WORDS,
    on_step: Callable[[int, int], None] | None = None,
) -> WordBank:
    """The word bank of `split`: from this process's memory, else from `folder`, else built (and kept in both).

    Args:
        split: "train" or "heldout".
        folder: where `words-<split>-<key>.safetensors` is read or written; the key covers vocabulary and speakers.
        words: the vocabulary by language.
        on_step: progress of a build, as in `build_bank`.
    Raises:
        ValueError: a damaged file in `folder`.
        ImportError: a bank has to be built and the `espeakng-loader` package is absent.
    """
    key = f"{split}-{_key(split, tuple(words.items()))}"
    if key not in _BANKS:
        path = Path(folder) / f"words-{key}.safetensors" if folder else None
        if path and path.exists():
            _BANKS[key] = _read(path, split, words)
        else:
            _BANKS[key] = build_bank(split, words=words, on_step=on_step)
            if path:
                _write(path, _BANKS[key])
    return _BANKS[key]


@functools.cache
def _key(split: str, words: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    content = [dict(words), [[astuple(speaker) for speaker in speakers(split, language)] for language, _ in words]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _read(path: Path, split: str, words: dict) -> WordBank:
    try:
        with safe_open(path, "pt") as file:
            return WordBank(split, file.get_tensor("pcm"), file.get_tensor("offsets"), words)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged word bank ({error}); delete it to build it anew") from error


def _write(path: Path, bank: WordBank) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    os.close(handle)
    save_file({"pcm": bank.pcm, "offsets": bank.offsets}, temporary)
    os.replace(temporary, path)
