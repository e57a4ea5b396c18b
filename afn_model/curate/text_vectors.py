"""Texts as vectors, and which of them are near each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from afn_model.curate.grounding import stems
from afn_model.hashing import text_key

DIMENSIONS = 256
# Vectors of length 1 are rounded to whole numbers of this length: products and their sums stay below 2²⁴, so that they
# are exact in float32 and the same with any number of threads.
SCALE = 2047
_BLOCK = 1 << 24  # products at a time, 64 MB


def hashed_words(texts: Sequence[str]) -> np.ndarray:
    """A bag of hashed words of each text: [n, 256] float32.

    v[h(w)] += s(w) · (1 + ln((1 + n) / (1 + n_w))) for each stem w of what the text names, h and s (a sign) by its
    hash, n_w the number of texts that have it. Texts that have nothing in common have a cosine of 0 ± 1/16.
    """
    known: dict[str, str] = {}  # each stem once, whatever the number of texts that have it
    named = [sorted({known.setdefault(stem, stem) for stem in stems(text)}) for text in texts]
    counts = Counter(stem for some in named for stem in some)
    places: dict[str, tuple[int, float]] = {}
    for stem, count in counts.items():
        hashed = text_key(stem)
        weight = 1.0 + math.log((1 + len(texts)) / (1 + count))
        places[stem] = hashed % DIMENSIONS, weight if hashed >> 63 else -weight
    found = np.zeros((len(texts), DIMENSIONS), np.float32)
    for row, some in zip(found, named, strict=True):
        for stem in some:
            place, weight = places[stem]
            row[place] += weight
    return found


def whole_numbers(vectors: Any, count: int) -> np.ndarray:
    """Vectors as directions: of length ``SCALE``, rounded to whole numbers, [n, d] float32; 0 stays 0.

    Raises:
        ValueError: they are no ``count`` vectors of finite numbers.
    """
    try:
        given = np.asarray(vectors, np.float32)
    except (TypeError, ValueError):
        raise ValueError("an embedding returns an array [texts, dimensions]") from None
    if given.ndim != 2 or len(given) != count or not np.isfinite(given).all():
        raise ValueError(f"an embedding of {count} texts returns finite [{count}, dimensions], got {given.shape}")
    lengths = np.sqrt(np.einsum("nd,nd->n", given, given, dtype=np.float64))
    found = given * (SCALE / np.maximum(lengths, 1e-30)).astype(np.float32)[:, None]
    return np.rint(found, out=found)


def nearest(vectors: np.ndarray, most: int, least: float) -> list[list[int]]:
    """For each vector the others with the largest cosine, best first, equal ones by their place.

    Args:
        vectors: of ``whole_numbers``, [n, d].
        most: of each.
        least: cosine.
    """
    found, limit = list[list[int]](), least * SCALE**2
    block = max(1, _BLOCK // max(1, len(vectors)))
    for at in range(0, len(vectors), block):
        alike = vectors[at : at + block] @ vectors.T
        for place, row in enumerate(alike, at):
            row[place] = -np.inf
            near = np.flatnonzero(row >= limit)
            if len(near) > most:
                values = row[near]
                near = near[values >= np.partition(values, len(values) - most)[len(values) - most]]
            found.append(near[np.lexsort((near, -row[near]))][:most].tolist())
    return found
