"""Records that training never sees: held back from a corpus, or a corpus that shares no recording with it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from afn_model.audio.shards import is_member, open_archive, read_member, split_path
from afn_model.audio.tables import is_cell
from afn_model.data.check import MOST
from afn_model.data.containers import sources_of
from afn_model.data.index import Corpus
from afn_model.data.order import permute
from afn_model.files import fingerprint, fingerprint_of
from afn_model.hashing import key, text_key
from afn_model.storage import is_url, join

_NAMED = 3  # shared recordings that are named


def split(corpus: Corpus, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the records to train on, and of those held back; both ascending, int64.

    Records that share a recording, directly or through others, stay together. Which are held back is a function of
    corpus, share and seed. Every record is read once, some 60 µs each.

    Args:
        corpus: to split.
        share: of its records to hold back, above 0 to below 1.
        seed: of the run.

    Raises:
        ValueError: more than a million records; records that share their recordings so that none can be held back
            without most of the others.
    """
    if len(corpus) > MOST:
        raise ValueError(
            f"{corpus.path}: {len(corpus):,} records are too many to hold a share of them back; give eval its own data"
        )
    return _split(corpus.path, corpus.fingerprint, share, seed)


@lru_cache(maxsize=64)
def _split(path, _: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    corpus = Corpus(path)
    groups, held = _groups(corpus), []
    wanted = max(1, round(share * len(corpus)))
    most = max(wanted, min(map(len, groups.values())))
    for number in sorted(groups, key=lambda first: (key(seed, text_key("held out"), first), first)):
        if len(held) + len(groups[number]) <= most:
            held += groups[number]
        if len(held) >= wanted:
            break
    if len(held) > max(len(corpus) / 2, 2 * wanted) or len(held) == len(corpus):
        raise ValueError(
            f"{corpus.path}: its {len(corpus):,} records share recordings: no {wanted:,} of them can be held back; "
            "give eval its own data"
        )
    chosen = np.zeros(len(corpus), bool)
    chosen[held] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _groups(corpus: Corpus) -> dict[int, list[int]]:
    """Records that share recordings, by the first of them."""
    leader = list(range(len(corpus)))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    first: dict[str, int] = {}
    for number in range(len(corpus)):
        for source in _recordings(corpus, number):
            a, b = sorted((find(first.setdefault(source, number)), find(number)))
            leader[b] = a
    groups = defaultdict(list)
    for number in range(len(corpus)):
        groups[find(number)].append(number)
    return groups


def evenly(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the numbers, evenly drawn and ascending."""
    if len(numbers) <= most:
        return numbers
    return np.sort(numbers[[permute(i, len(numbers), key(0)) for i in range(most)]])


def check_apart(training: Mapping[str, Corpus], held: Corpus) -> None:
    """Looks for recordings of a held-out corpus in those of training, by their paths and by what is in them.

    Contents are compared where files, or members of tar files, on this machine have the same size. Of a training
    corpus of more than a million records so many are looked at.

    Raises:
        ValueError: some are there; up to three are named.
    """
    own = {source: number for number in range(len(held)) for source in _recordings(held, number)}
    by_size: dict[int, list[str]] = defaultdict(list)
    for source in own:
        if (size := _size(source)) is not None:
            by_size[size].append(source)
    found: dict[str, str] = {}
    for name, corpus in training.items():
        total = len(corpus)
        numbers = range(total) if total <= MOST else (permute(i, total, key(0)) for i in range(MOST))
        for number in numbers:
            for source in _recordings(corpus, number):
                same = source if source in own else _same(source, by_size)
                if same is not None:
                    found.setdefault(same, f"record {own[same]} ({same}) is in {name}[{number}]")
    if found:
        more = f"; and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
        named = "; ".join(list(found.values())[:_NAMED])
        raise ValueError(f"{held.path}: {len(found):,} held-out recordings are trained on: {named}{more}")


def _recordings(corpus: Corpus, number: int) -> Iterator[str]:
    """Where the recordings of a record are, each once; none of a record that is not valid."""
    try:
        record = corpus[number]
    except ValueError:
        return
    for source in dict.fromkeys(sources_of(record)):
        place = join(corpus.folder, source)
        if is_member(place):
            tar, member = split_path(place)
            place = f"{tar if is_url(tar) else os.path.realpath(tar)}#{member}"
        elif not is_url(place) and not is_cell(place):
            place = os.path.realpath(place)
        yield place


def _same(source: str, by_size: Mapping[int, list[str]]) -> str | None:
    """The recording that has the same bytes, None where there is none."""
    size = _size(source)
    candidates = by_size.get(size, []) if size is not None else []
    if not candidates:
        return None
    digest = _digest(source)
    return next((other for other in candidates if _digest(other) == digest), None)


def _size(source: str) -> int | None:
    """Bytes of a recording on this machine."""
    try:
        if is_member(source):
            tar, member = split_path(source)
            return None if is_url(tar) else open_archive(tar).find(member)[1]
        return None if is_url(source) or is_cell(source) else os.stat(source).st_size
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=1 << 16)
def _digest(source: str) -> str:
    if is_member(source):
        return fingerprint_of([bytes(read_member(source))])
    return fingerprint(Path(source))
