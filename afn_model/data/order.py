"""The order of samples: a function of (seed, epoch, global index) alone, in constant time and memory.

Any number of ranks, workers and restarts sees the same stream: whoever asks for sample i gets the same record.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import isqrt

from afn_model.hashing import key, mix

ROUNDS = 6


def permute(index: int, count: int, key: int) -> int:
    """The image of ``index`` under the permutation of 0 .. count − 1 that a key selects.

    A Feistel network on pairs (a, b) with a < ⌈√count⌉, b < ⌈count / ⌈√count⌉⌉, applied again
    while the result is ≥ count.

    Raises:
        ValueError: an index outside 0 .. count − 1.

    Source: Black and Rogaway, 2002, Ciphers with arbitrary finite domains.
    """
    if not 0 <= index < count:
        raise ValueError(f"index {index} is outside 0..{count - 1}")
    rows = isqrt(count - 1) + 1
    columns = -(-count // rows)
    while True:
        a, b = divmod(index, columns)
        for turn in range(0, ROUNDS, 2):
            a = (a + mix(key + turn ^ (b << 8))) % rows
            b = (b + mix(key + turn + 1 ^ (a << 8))) % columns
        index = a * columns + b
        if index < count:
            return index


def cuts(count: int, least: int, most: int) -> list[int]:
    """Bounds 0 … count of pieces of ``least``, 2 · ``least``, 4 · ``least``, ..., at most ``most`` samples.

    What is left is divided evenly where it takes several pieces: the last piece is not a small one.
    """
    bounds, size = [0], min(least, most)
    while (rest := count - bounds[-1]) > 0:
        bounds.append(bounds[-1] + -(-rest // -(-rest // size)))
        size = min(2 * size, most)
    return bounds


@dataclass(frozen=True)
class Source:
    """A dataset in the blend: its name, how many records it has, and how often each is seen in an epoch (β)."""

    name: str
    records: int
    weight: float = 1.0

    def __post_init__(self):
        if self.records < 1:
            raise ValueError(f"dataset {self.name!r} has {self.records} records")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"dataset {self.name!r} has the blend weight {self.weight}")

    @property
    def draws(self) -> int:
        """Samples of this dataset in one epoch, β · records to the nearest whole number."""
        return round(self.weight * self.records)


@dataclass(frozen=True)
class Draw:
    """A sample: record ``record`` of dataset ``source`` (its place in the blend), read for the ``visit``-th time."""

    source: int
    record: int
    visit: int


@dataclass(frozen=True)
class Order:
    """The stream of samples of a blend of datasets.

    Dataset i gives β_i · |D_i| samples per epoch: ⌊β_i⌋ whole visits, each record once per visit, and a different part
    of the records in every epoch for the rest. The samples of all datasets are shuffled together anew every epoch.

    Args:
        sources: the datasets.
        seed: of the whole run.

    Raises:
        ValueError: no samples at all, or two datasets of one name.
    """

    sources: tuple[Source, ...]
    seed: int

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"the blend names a dataset twice: {', '.join(names)}")
        if not len(self):
            raise ValueError(f"the blend has no samples: {names}")

    @cached_property
    def ends(self) -> list[int]:
        """Cumulated samples of an epoch by dataset, before shuffling."""
        return list(accumulate(source.draws for source in self.sources))

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Draw:
        """The sample at a global index, which counts on across epochs.

        Raises:
            IndexError: a negative index.
        """
        if index < 0:
            raise IndexError(f"sample {index}")
        epoch, place = divmod(index, len(self))
        place = permute(place, len(self), key(self.seed, epoch))
        number = bisect_right(self.ends, place)
        source = self.sources[number]
        # Draws of a dataset are numbered across epochs, so that half a visit is completed in the next epoch.
        draw = epoch * source.draws + place - (self.ends[number] - source.draws)
        visit, at = divmod(draw, source.records)
        record = permute(at, source.records, key(self.seed, number + 1, visit))
        return Draw(number, record, visit)
