"""Audio fingerprints: finds the same audio again, whatever it was encoded with and wherever it was cut.

Of the energies E[t, b] of frames t every 10 ms in 33 mel bands b between 100 and 3,800 Hz,

    S[j, b] = Σᵢ h[i] E[2j + i, b]                       a Hann window h of 16 frames, every 20 ms
    L[j, b] = log₂(S[j, b] + 10⁻³ M + 10⁻⁸)              M = the larger maximum over bands of S[j] and S[j − 8]
    D[j, b] = (L[j, b] − L[j, b + 1]) − (L'[j − 8, b] − L'[j − 8, b + 1]),  b = 0 … 31, L' with the M of j
    code bit = D > 0.2,  sure bit = |D| > 0.3

A code says in 32 bits how the shape of the spectrum has changed in 160 ms; what is 30 dB below the loudest band does
not count. A gain adds the same to all L and a filter adds the same at all times, so both cancel, and a coder turns few
of the sure bits. Silence and steady tones have no sure bits, so that there is nothing to find them by. Another speed or
pitch is another recording.

A recording is looked up by codes that are equal in all 32 bits; those that agree on the offset between two recordings
make a candidate. Along it, of the query's sure bits, a stretch of codes scores Σ(0.2 · sure − wrong), which grows where
fewer than 20 % are wrong (unrelated audio has half of them wrong). The best stretches are matches where they reach
``SCORE`` with at most ``WRONG`` of their bits wrong.

Another processor's rounding turns a bit only where D is within 1e-5 of 0.2. That is never a sure bit, and one code in
some thousands; a match rests on many.

Source: Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002 (signs of differences over bands
and time as bits); Smith and Waterman, 1981 (the best stretch).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

import afn_kernels as ak
from afn_model.audio.decode import stream_audio
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.source import read_source
from afn_model.files import atomic_path

VERSION = 1  # of what codes mean
HOP, FRAME = 160, 400  # samples between frames, of a frame
STEP, SMOOTH, LAG = 2, 16, 8  # frames between codes, frames of the window, codes between the two that are compared
BIT, SURE = 0.2, 0.3
STEP_SECONDS = STEP * HOP / SAMPLE_RATE
CODE_SAMPLES = HOP * (STEP * LAG + SMOOTH - 1) + FRAME  # that a code is made of
CODE_SECONDS = CODE_SAMPLES / SAMPLE_RATE
CHUNK = 1500  # codes that are made at a time
LONGEST = 24 * 3600.0  # seconds
LEAST_SURE = 4  # bits of a code that is looked up
ALLOWED = 0.2  # share of sure bits beyond which more of them lower a score
SCORE, WRONG = 60.0, 0.08  # of a match
COMMON = 512  # codes that are found more often say nothing
OF_ITEM, CANDIDATES = 16, 1024  # offsets that are looked at, at most, those with the most equal codes first


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The codes of a recording, one every 20 ms, of 0.5 s each; 400 bytes for a second.

    Args:
        codes: [n] uint32.
        sure: [n] uint32, the bits of them that a coder would not change.
    """

    codes: np.ndarray
    sure: np.ndarray

    @property
    def information(self) -> int:
        """Sure bits of all codes."""
        return int(_ones(self.sure).sum())

    @property
    def is_findable(self) -> bool:
        """Whether there is enough of it for a match, with a third to lose."""
        return ALLOWED * self.information >= 1.5 * SCORE

    def save(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part, part.open("wb") as file:
            np.save(file, np.stack([self.codes, self.sure]))


def read_fingerprint(path: str | Path) -> Fingerprint:
    return Fingerprint(*np.load(path, mmap_mode="r"))


def fingerprint(pcm: torch.Tensor) -> Fingerprint:
    """The fingerprint of samples [n] at 16 kHz, float32; less than 0.5 s have no codes."""
    return _joined(_codes([pcm]))


def fingerprint_of(path: str | Path, start: float | None = None, end: float | None = None) -> Fingerprint:
    """The fingerprint of a recording or a part of it, decoded piece by piece.

    Args:
        path: of the file.
        start, end: seconds.

    Raises:
        ValueError: as ``load_audio``.
    """
    return _joined(_codes(stream_audio(read_source(path), start=start, end=end, max_seconds=LONGEST)))


def _joined(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Fingerprint:
    codes, sure = zip(*[(np.zeros(0, np.uint32),) * 2, *parts], strict=True)
    return Fingerprint(np.concatenate(codes), np.concatenate(sure))


def _codes(pieces: Iterable[torch.Tensor]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Codes of pieces of a recording; where it is divided changes nothing."""
    step, needed = STEP * HOP, CODE_SAMPLES + (CHUNK - 1) * STEP * HOP
    held, count = list[torch.Tensor](), 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= needed:
            pcm = torch.cat(held)
            while len(pcm) >= needed:
                yield _chunk(pcm[:needed])
                pcm = pcm[CHUNK * step :]
            held, count = [pcm], len(pcm)
    if count >= CODE_SAMPLES:
        yield _chunk(torch.cat(held))


@cache
def _front_end():
    from afn_kernels.log_mel.mel_config import MelConfig

    plain = {"log": None, "range": None, "floor": 0.0, "offset": 0.0, "divisor": 1.0}
    return MelConfig(n_mels=33, f_min=100.0, f_max=3800.0, padding=None, last_frame="keep", **plain)


def _chunk(pcm: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    energies = ak.log_mel(pcm[None], config=_front_end())[0].numpy()  # [33, frames]
    count = (energies.shape[1] - SMOOTH) // STEP + 1
    window = np.hanning(SMOOTH + 2)[1:-1].astype(np.float32)
    phases = [np.ascontiguousarray(energies[:, phase::STEP]) for phase in range(STEP)]
    smooth = np.zeros((len(energies), count), np.float32)
    for i, weight in enumerate(window / window.sum()):  # in an order of its own, whatever the length
        smooth += weight * phases[i % STEP][:, i // STEP : i // STEP + count]
    now, before = smooth[:, LAG:], smooth[:, :-LAG]
    floor = np.float32(1e-3) * np.maximum(now.max(0), before.max(0)) + np.float32(1e-8)
    change = np.diff(np.log2(before + floor) - np.log2(now + floor), axis=0)
    return _packed(change > BIT), _packed(np.abs(change) > SURE)


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.packbits(bits.T, axis=1)).view(">u4")[:, 0].astype(np.uint32)


@dataclass(frozen=True)
class SoundMatch:
    """A stretch of the query that is in an indexed recording.

    Args:
        name: of the indexed recording.
        first, last: codes of the query, the last one excluded.
        offset: code of the indexed recording less that of the query.
        bits: sure bits of the stretch.
        wrong: share of them that differ.
        score: as above.
    """

    name: str
    first: int
    last: int
    offset: int
    bits: int
    wrong: float
    score: float

    @property
    def stretch(self) -> tuple[int, int]:
        """Codes of the query."""
        return self.first, self.last

    @property
    def start(self) -> float:
        """Seconds of the query."""
        return round(self.first * STEP_SECONDS, 2)

    @property
    def end(self) -> float:
        return round((self.last - 1) * STEP_SECONDS + CODE_SECONDS, 2)

    @property
    def there(self) -> float:
        """Seconds of the indexed recording where the stretch begins."""
        return round((self.first + self.offset) * STEP_SECONDS, 2)


_BITS = 33  # of an offset and its sign


class FingerprintIndex:
    """Recordings that others are looked for in: sorted codes, every second one, with their places.

    An hour takes 1.44 MB, 50,000 hours 72 GB: half of it the codes, a quarter sorted codes, a quarter their
    places. An index has less than 2³² codes (23,000 hours); more are several indices, each of which is asked.

    Args:
        prints: name -> fingerprint.
    """

    def __init__(self, prints: Iterable[tuple[str, Fingerprint]]):
        self.names, starts, parts, looked = list[str](), [0], list[np.ndarray](), list[np.ndarray]()
        for name, one in prints:
            self.names.append(name)
            parts.append(one.codes)
            mask = _ones(one.sure) >= LEAST_SURE
            mask[1::2] = False
            looked.append(np.flatnonzero(mask).astype(np.uint32) + np.uint32(starts[-1]))
            starts.append(starts[-1] + len(one.codes))
        if starts[-1] >= 1 << 32:
            raise ValueError(f"{starts[-1]:,} codes in an index, more than 2³²: divide the recordings")
        self.starts = np.asarray(starts, np.int64)
        self.codes = np.concatenate([np.zeros(0, np.uint32), *parts])
        places = np.concatenate([np.zeros(0, np.uint32), *looked])
        order = np.argsort(self.codes[places], kind="stable")
        self.places, self.sorted = places[order], self.codes[places[order]]

    def matches(
        self, query: Fingerprint, *, score: float = SCORE, wrong: float = WRONG, but: str | None = None
    ) -> list[SoundMatch]:
        """Stretches of a recording that are in indexed ones, in order; of two of the same recording that overlap by
        half, the better one.

        Args:
            query: of the recording.
            score, wrong: the least, and the most.
            but: a name that is left out.
        """
        found = [
            one
            for item, offset in self._candidates(query, but)
            for one in self._along(query, item, offset, score)
            if one.wrong <= wrong
        ]
        kept: dict[str, list[SoundMatch]] = {}
        for one in sorted(found, key=lambda one: (-one.score, one.name, one.first, one.offset)):
            others, half = kept.setdefault(one.name, []), (one.last - one.first) / 2
            if all(min(one.last, two.last) - max(one.first, two.first) < half for two in others):
                others.append(one)
        return sorted(
            (one for some in kept.values() for one in some), key=lambda one: (one.first, one.name, one.offset)
        )

    def _candidates(self, query: Fingerprint, but: str | None) -> list[tuple[int, int]]:
        """(item, code of the item less code of the query), the most equal codes first."""
        asked = np.flatnonzero(_ones(query.sure) >= LEAST_SURE)
        first = np.searchsorted(self.sorted, query.codes[asked], "left")
        count = np.searchsorted(self.sorted, query.codes[asked], "right") - first
        count[count > COMMON] = 0
        which = np.repeat(np.arange(len(asked)), count)
        at = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
        places = self.places[at].astype(np.int64)
        items = np.searchsorted(self.starts, places, "right") - 1
        offsets = places - self.starts[items] - asked[which]
        pairs = (items << _BITS) + offsets + (1 << (_BITS - 1))
        if but in self.names:
            pairs = pairs[items != self.names.index(but)]
        pairs, hits = np.unique(pairs, return_counts=True)
        order = np.lexsort((-hits, pairs >> _BITS))
        pairs, hits = pairs[order], hits[order]
        new = np.flatnonzero(np.diff(pairs >> _BITS, prepend=-1))
        rank = np.arange(len(pairs)) - np.repeat(new, np.diff(np.append(new, len(pairs))))
        pairs, hits = pairs[rank < OF_ITEM], hits[rank < OF_ITEM]
        best = pairs[np.argsort(-hits, kind="stable")[:CANDIDATES]].tolist()
        return [(pair >> _BITS, (pair & ((1 << _BITS) - 1)) - (1 << (_BITS - 1))) for pair in best]

    def _along(self, query: Fingerprint, item: int, offset: int, least: float) -> Iterator[SoundMatch]:
        codes = self.codes[self.starts[item] : self.starts[item + 1]]
        begin, end = max(0, -offset), min(len(query.codes), len(codes) - offset)
        sure = query.sure[begin:end]
        wrong = _ones((query.codes[begin:end] ^ codes[begin + offset : end + offset]) & sure).astype(np.int64)
        total = _ones(sure).astype(np.int64)
        for first, last, score in best_stretches(ALLOWED * total - wrong, least):
            errors, bits = int(wrong[first:last].sum()), int(total[first:last].sum())
            yield SoundMatch(self.names[item], begin + first, begin + last, offset, bits, errors / bits, score)


def best_stretches(gains: np.ndarray, least: float) -> Iterator[tuple[int, int, float]]:
    """(first, last + 1, sum) of the stretches with the largest sums, at least ``least``, that do not touch."""
    left = [(0, len(gains))]
    while left:
        begin, end = left.pop()
        sums = np.concatenate([[0.0], np.cumsum(gains[begin:end])])
        lowest = np.minimum.accumulate(sums)
        last = int(np.argmax(sums - lowest))
        first = int(np.argmin(sums[: last + 1]))
        if (score := float(sums[last] - sums[first])) >= least and last > first:
            yield begin + first, begin + last, round(score, 1)
            left += [(begin, begin + first), (begin + last, end)]


def share_covered(one: Fingerprint, stretches: Iterable[tuple[int, int]]) -> float:
    """The share of a recording's sure bits that are in any of the stretches of codes."""
    inside = np.zeros(len(one.codes), bool)
    for first, last in stretches:
        inside[first:last] = True
    return int(_ones(one.sure[inside]).sum()) / max(1, one.information)


def share_aligned(query: Fingerprint, other: Fingerprint, matches: Sequence[SoundMatch]) -> float:
    """The larger of two shares, of the query's sure bits in another recording and of that one's in the query, where the
    two are laid over each other once: matches whose offsets differ by more than 0.1 s do not count together."""
    best = 0.0
    for offset in {one.offset for one in matches}:
        near = [one for one in matches if abs(one.offset - offset) * STEP_SECONDS <= 0.1]
        here = share_covered(query, [one.stretch for one in near])
        there = share_covered(other, [(one.first + one.offset, one.last + one.offset) for one in near])
        best = max(best, here, there)
    return best


@cache
def _table() -> np.ndarray:
    numbers = np.arange(1 << 16, dtype=np.uint16)
    return np.unpackbits(numbers.view(np.uint8).reshape(-1, 2), axis=1).sum(1, dtype=np.uint8)


def _ones(words: np.ndarray) -> np.ndarray:
    """How many bits of each word are 1."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(words)
    return _table()[words & 0xFFFF] + _table()[words >> 16]
