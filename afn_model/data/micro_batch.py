"""What the loader gives the trainer: the micro-batches of an optimiser step, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from afn_model.data.plan import Position
from afn_model.data.records import Sample
from afn_model.prompt.batch import Batch, Prepared

_BAD_AT_LEAST = 10  # bad records before their share counts
_NAMED = 3  # bad records named when the loader stops


@dataclass
class MicroBatch:
    """One bin of a global batch; with ``DataConfig.prompts_only``, all samples of this data-parallel rank.

    Args:
        batch: packed ids, labels and int16 samples, windows one after another; None with ``prompts_only``. An empty
            bin has two tokens without labels.
        samples: one for each sequence; none in an empty bin.
        axes: of each sequence; ``[""]`` in an empty bin.
        bad: (name, reason) of samples that could not be used.
        cut: recordings cut to the longest they may be.
        dropped: (name, reason) of samples left out because a recording is too long (``DataConfig.on_long``).
        prepared: with ``prompts_only``, the prompt of each sample with its audio.
        source: where ranks share sequences, the rank of the group that has the samples of all windows; the batches of
            the others have none. None where every rank has its own.
    """

    batch: Batch | None
    samples: list[Sample]
    axes: list[str]
    bad: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    prepared: list[Prepared] | None = None
    source: int | None = None


class GlobalBatch:
    """This data-parallel rank's part of the batch of one optimiser step: a stream of micro-batches.

    They are decoded while the ones before are trained on, and nothing is kept of those that were read but what could
    not be used: ``bad``, ``cut`` and ``dropped`` are complete once all have been. ``len`` is the number of all.

    Args:
        micro: its micro-batches.
        position: of the next step.
        seen: samples consumed after this step, over all data-parallel ranks, bad and dropped ones included.
        count: number of micro-batches, where they are a stream.
        supervised: tokens of the whole step, of all ranks, that the loss counts, by the plan; None where nobody knows.
            Samples that turn out to be bad when they are decoded stay counted: a step's loss is divided by the same
            number on any number of ranks and workers.
        ends_chunk: whether the step has a chunk's last bin.

    Attributes:
        wait: seconds that the reader waited for micro-batches.
        following: the stream that this batch is from, for ``more``; None where there is none.
        step, progress: optimiser steps that the stage has done, and its share that is done, 0 to 1.
    """

    following: Iterator[GlobalBatch] | None = None
    step: int = 0
    progress: float = 0.0

    def __init__(
        self,
        micro: Iterable[MicroBatch],
        position: Position,
        seen: int,
        *,
        count: int | None = None,
        supervised: int | None = None,
        ends_chunk: bool = False,
    ):
        self._kept = micro if isinstance(micro, list) else None
        self._stream = iter(micro)
        self._count = len(self._kept) if self._kept is not None else count
        self.position, self.seen, self.supervised, self.ends_chunk = position, seen, supervised, ends_chunk
        self.wait, self._read = 0.0, []
        self._each: list[Callable[[MicroBatch], MicroBatch]] = []
        self._more: list[GlobalBatch] = []

    def through(self, change: Callable[[MicroBatch], MicroBatch]) -> GlobalBatch:
        """This batch; its micro-batches go through ``change`` as they are read."""
        self._each.append(change)
        return self

    def __len__(self) -> int:
        assert self._count is not None, "a stream of micro-batches comes with their count"
        return self._count

    def __iter__(self) -> Iterator[MicroBatch]:
        """The micro-batches; those of a stream once."""
        while self._kept is None:
            begun = time.perf_counter()
            one = next(self._stream, None)
            self.wait += time.perf_counter() - begun
            if one is None:
                assert len(self._read) == len(self), "a step's micro-batches are read before the next step is"
                return
            self._read.append(MicroBatch(None, one.samples, [], one.bad, one.cut, one.dropped))
            yield self._changed(one)
            del one  # or it would stay until the next one has come
        yield from map(self._changed, self._kept)

    def _changed(self, one: MicroBatch) -> MicroBatch:
        for change in self._each:
            one = change(one)
        return one

    @property
    def micro(self) -> list[MicroBatch]:
        """All of them at once, those that were not read yet; they are kept from now on."""
        if self._kept is None:
            self._kept, self._each = list(self), []
        return self._kept

    def more(self) -> GlobalBatch:
        """The stream's next global batch, which belongs to this step too: the next step begins after it.

        All ranks must ask for it equally often.
        """
        assert self.following is not None, "no stream to draw from"
        begun = time.perf_counter()
        found = next(self.following)
        self._more.append(found)
        assert len(found.micro) == len(found)  # all of it is read now
        self.wait += time.perf_counter() - begun
        self.position, self.seen = found.position, found.seen
        self.ends_chunk = self.ends_chunk or found.ends_chunk
        return found

    @property
    def read(self) -> list[MicroBatch]:
        """What was read so far, without batches; of ``more`` too."""
        own = self._kept if self._kept is not None else self._read
        return [*own, *(micro for batch in self._more for micro in batch.read)]

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(name, reason) of samples of this rank's part that could not be used."""
        return [one for micro in self.read for one in micro.bad]

    @property
    def cut(self) -> int:
        """Recordings of this rank's part that were cut."""
        return sum(micro.cut for micro in self.read)

    @property
    def dropped(self) -> int:
        """Samples of this rank's part that were left out because a recording is too long."""
        return sum(len(micro.dropped) for micro in self.read)


class BadTally:
    """Counts the different records that cannot be used, however often they come, and stops where there are too many.

    Args:
        share: of the different records met that may be bad.
        records: different records that there are.
    """

    def __init__(self, share: float, records: float = float("inf")):
        self.share, self.records, self.bad = share, records, {}
        self.seen = self.unusable = 0  # samples, repeated ones as often as they come
        self.whole = False

    def add(self, micro: list[MicroBatch], ends_chunk: bool) -> None:
        """Counts the samples of a step.

        Raises:
            ValueError: too many bad records.
        """
        for one in micro:
            self.seen += len(one.samples) + len(one.bad) + len(one.dropped)
            self.unusable += len(one.bad) + len(one.dropped)
            self.bad.update(one.bad)
        nothing_good = ends_chunk and not self.whole and self.seen == self.unusable > 0
        self.whole |= ends_chunk
        met, bad = min(self.seen, self.records), len(self.bad)
        enough = _BAD_AT_LEAST if self.share else 1
        if (nothing_good and bad) or (bad >= enough and bad > self.share * met):
            named = listed(list(self.bad.items()))
            raise ValueError(f"{bad} of {met} records are bad, more than {self.share:.2%}: {named}")


def listed(bad: list[tuple[str, str]]) -> str:
    """The first bad samples, in one line."""
    return "; ".join(f"{name}: {reason}" for name, reason in bad[:_NAMED])
