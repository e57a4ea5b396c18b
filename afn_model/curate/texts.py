"""Words of what was written about recordings, and sequences of them that are in two texts."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

GRAM = 13  # words in a row that two texts do not have in common by chance
TEXTS = (
    "text",
    "title",
    "description",
    "question",
    "answer",
    "choices",
    "caption",
    "transcript",
    "content",
    "captions",
)
_WORD = re.compile(r"\w+(?:['’]\w+)*")
# Scripts whose marks are no letters to Python, and those that put no spaces between words.
_MARKED = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
_RUN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30fa\u30fc-\u30ff"
_HAN = "\u3400-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"(?P<han>[{_HAN}])|(?P<run>[{_RUN}]+)|(?:(?![{_RUN}{_HAN}])[\w{_MARKED}]|(?<=\w)['’](?=\w))+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a sequence is lost


def texts_in(value: Any) -> Iterator[str]:
    """The texts of a field, however it nests them: strings by themselves, in lists, and under the keys ``TEXTS``."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name in TEXTS:
            yield from texts_in(value.get(name))
        for name in sorted(set(value) - set(TEXTS)):
            if isinstance(value[name], (dict, list, tuple)):
                yield from texts_in(value[name])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from texts_in(one)


def words_of(text: str) -> list[str]:
    """Words without case, accents of compatibility and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("’", "'"))


def units_of(text: str) -> list[str]:
    """Words as of ``words_of``, of any script: with their marks, and where words stand without spaces each Han
    character, and each two of other characters that follow one another."""
    if text.isascii():
        return words_of(text)
    found: list[str] = []
    for one in _UNIT.finditer(unicodedata.normalize("NFKC", text).casefold().replace("’", "'")):
        run = one["run"]
        found += [run[at : at + 2] for at in range(max(1, len(run) - 1))] if run else [one[0]]
    return found


def place_of(words: Sequence[str], text: Sequence[str]) -> range | None:
    """Where words, one at least, follow one another in those of a text for the first time; None where they do not."""
    size, sought = len(words), list(words)
    at = next((at for at in range(len(text) - size + 1) if size and list(text[at : at + size]) == sought), None)
    return None if at is None else range(at, at + size)


def runs_of(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """All sequences of so many words, in order."""
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]


def grams(words: Sequence[str], size: int = GRAM) -> np.ndarray:
    """A 64-bit hash for each sequence of ``size`` words, in order: [max(0, len(words) − size + 1)] uint64."""
    count = len(words) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    hashed, found = np.array([_hash(word) for word in words], np.uint64), np.zeros(count, np.uint64)
    for at in range(size):
        found = found * _FACTOR + hashed[at : at + count]
    return found


@lru_cache(1 << 16)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Grams:
    """Sequences of words of numbered texts, that other texts are compared with.

    Args:
        texts: (number, text); a number may come again.
        common: sequences that more numbers have are a form that questions are put in, and no text's own.
    """

    def __init__(self, texts: Iterable[tuple[int, str]], common: int = 10):
        parts = [(grams(words_of(text)), number) for number, text in texts]
        hashed = np.concatenate([np.zeros(0, np.uint64), *(found for found, _ in parts)])
        numbers = np.concatenate([np.zeros(0, np.int64), *(np.full(len(found), number) for found, number in parts)])
        order = np.lexsort((numbers, hashed))
        hashed, numbers = hashed[order], numbers[order]
        new = np.ones(len(hashed), bool)
        new[1:] = (hashed[1:] != hashed[:-1]) | (numbers[1:] != numbers[:-1])
        hashed, numbers = hashed[new], numbers[new]
        self.hashed, first, counts = np.unique(hashed, return_index=True, return_counts=True)
        own = counts <= common
        self.hashed, self.numbers = self.hashed[own], numbers[first[own]]

    def shared(self, texts: Iterable[str]) -> tuple[int, str] | None:
        """(number, the words) of the first sequence that one of the texts has too; None where there is none."""
        for text in texts:
            words = words_of(text)
            found = grams(words)
            if not len(self.hashed) or not len(found):
                continue
            at = np.minimum(np.searchsorted(self.hashed, found), len(self.hashed) - 1)
            hits = np.flatnonzero(self.hashed[at] == found)
            if len(hits):
                return int(self.numbers[at[hits[0]]]), " ".join(words[hits[0] : hits[0] + GRAM])
        return None
