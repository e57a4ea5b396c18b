"""The trainer's batches: planned by one process, decoded by several, the same whatever their number.

loader = Loader(feed, processor, group=rank // sp, groups=world // sp, workers=4, position=saved)
for step in loader:
    for micro in step.micro: ...                        # one bin each: packed ids, labels, int16 windows
    saved = step.position                               # where the next step begins
"""

from __future__ import annotations

import copy
import itertools
import multiprocessing.util
import os
import signal
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader, Dataset

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.data.plan import SLACK, Blend, Feed, Job, Plan, Position, make_plan
from afn_model.data.records import Sample, audios_of
from afn_model.prompt.batch import IGNORED, Batch, Prepared
from afn_model.prompt.processor import AFNextProcessor

__all__ = ["Feed", "Loader", "MicroBatch", "Position", "Step"]

_BAD_AT_LEAST = 10  # bad samples before their share counts
_NAMED = 3  # bad samples named when the loader stops


@dataclass
class MicroBatch:
    """One bin of a step; with ``Feed.prompts``, all of the group's samples of the step.

    Args:
        batch: packed ids, labels and int16 windows; None with ``Feed.prompts``. An empty bin has two tokens without
            labels.
        samples: one for each sequence; none in an empty bin.
        axes: of each sequence; ``[""]`` in an empty bin.
        bad: (name, reason) of samples that could not be used.
        cut: recordings cut to the most that they may have.
    """

    batch: Batch | None
    samples: list[Sample]
    axes: list[str]
    bad: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0


@dataclass
class Step:
    """A group's share of a global optimiser step.

    Args:
        micro: its micro-batches.
        position: of the next step.
        seen: samples behind after this step, all groups together, bad ones included.
    """

    micro: list[MicroBatch]
    position: Position
    seen: int


class Loader:
    """The endless stream of a group's steps from a position on.

    What a global step holds depends on feed and processor alone, not on groups, workers or restarts.

    Args:
        feed: what to read.
        processor: of the model; windows are int16 whatever its ``pcm_dtype``.
        group, groups: which share of every step; ranks that work on the same sequences are one group.
        workers: processes that decode, beside one that plans; 0 does all in this one.
        position: where to begin.

    Raises:
        ValueError: a blend or dataset that cannot be used, bins that do not divide by groups, and while iterating:
            too many bad samples, a position past the end of its chunk.
    """

    def __init__(
        self,
        feed: Feed,
        processor: AFNextProcessor,
        *,
        group: int = 0,
        groups: int = 1,
        workers: int = 0,
        position: Position = Position(),  # noqa: B008
    ):
        if not 0 <= group < groups:
            raise ValueError(f"group {group} of {groups}")
        if feed.bins % groups:
            raise ValueError(f"{feed.bins} bins of a step cannot be shared by {groups} groups")
        if min(position.chunk, position.step) < 0:
            raise ValueError(f"position {position}")
        self.feed, self.group, self.groups, self.workers, self.position = feed, group, groups, workers, position
        self.blend = Blend(feed)
        self.processor = copy.copy(processor)
        self.processor.pcm_dtype, self.processor.strict = torch.int16, False

    @property
    def fingerprint(self) -> dict[str, str]:
        """Name of each dataset → SHA-256 of what its index says about it."""
        return self.blend.fingerprint()

    @property
    def samples_per_epoch(self) -> int:
        """Samples of one pass through the blend."""
        return len(self.blend.order)

    def __iter__(self) -> Iterator[Step]:
        heads: deque[_Head | ValueError] = deque()  # of the steps whose jobs have been given out
        jobs = self._jobs(heads)
        decoded = _stream(_Decoder(self.blend, self.feed, self.processor), jobs, self.workers)
        tally = BadTally(self.feed.bad_share)
        for first in decoded:
            head = heads.popleft()
            if isinstance(head, ValueError):
                raise head
            micro = [first, *itertools.islice(decoded, head.jobs - 1)]
            tally.add(micro, head.ends_chunk)
            yield Step(micro, head.position, head.seen)

    def _jobs(self, heads: deque) -> Iterator[Job]:
        """The group's jobs in order; ``heads`` gets what belongs to each step before its first job.

        Jobs are given out ahead of time: what is wrong with a plan has to wait for its turn in ``heads``.
        """
        share = self.feed.bins // self.groups
        plans = _stream(
            _Planner(self.blend, self.feed, self.processor), itertools.count(self.position.chunk), min(self.workers, 1)
        )
        begin = self.position.step
        for plan in plans:
            if wrong := _wrong(plan, begin):
                heads.append(ValueError(wrong))
                yield plan.job(0, 0)
                return
            for step in range(begin, plan.steps):
                first = step * self.feed.bins + self.group * share
                last = step + 1 == plan.steps
                position = Position(plan.chunk + 1) if last else Position(plan.chunk, step + 1)
                width = share if self.feed.prompts else 1
                bounds = range(first, first + share, width)
                heads.append(_Head(len(bounds), position, self.feed.first(plan.chunk) + plan.done(step), last))
                yield from (plan.job(b, b + width) for b in bounds)
            begin = 0


@dataclass(frozen=True)
class _Head:
    jobs: int
    position: Position
    seen: int
    ends_chunk: bool


def _wrong(plan: Plan, begin: int) -> str | None:
    if not plan.steps:
        return f"all {len(plan.bad)} samples of chunk {plan.chunk} are bad: {_listed(plan.bad)}"
    if begin >= plan.steps:
        return f"step {begin} is past the {plan.steps} steps of chunk {plan.chunk}: the data has changed"
    return None


def _listed(bad: list[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in bad[:_NAMED])


class BadTally:
    """Counts bad samples and stops the run where there are too many."""

    def __init__(self, share: float):
        self.share, self.seen, self.bad, self.first, self.whole = share, 0, 0, [], False

    def add(self, micro: list[MicroBatch], ends_chunk: bool) -> None:
        for one in micro:
            self.seen += len(one.samples) + len(one.bad)
            self.bad += len(one.bad)
            self.first = (self.first + one.bad)[:_NAMED]
        nothing_good = ends_chunk and not self.whole and self.seen == self.bad > 0
        self.whole |= ends_chunk
        if nothing_good or (self.bad >= _BAD_AT_LEAST and self.bad > self.share * self.seen):
            raise ValueError(
                f"{self.bad} of {self.seen} samples are bad, more than {self.share:.2%}: {_listed(self.first)}"
            )


def _stream(dataset: Dataset, keys: Iterator, workers: int) -> Iterator:
    """``dataset[key]`` for each key in order, made ahead of time by worker processes."""
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or it warns of every fork
    others = set(multiprocessing.active_children())
    stream = iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # or every loader draws from the global one
            worker_init_fn=_outlive_signals,
        )
    )
    _started.update(set(multiprocessing.active_children()) - others)
    return stream


def _outlive_signals(_: int) -> None:
    """Leaves it to the trainer what to do when the whole job is told to end; workers go when it goes."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_started: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def _kill_started() -> None:
    for process in list(_started):
        if process._parent_pid == os.getpid() and process.is_alive():
            process.kill()


# Before multiprocessing waits for its children, whom it only asks to end.
multiprocessing.util.Finalize(None, _kill_started, exitpriority=100)


class _Planner(Dataset):
    def __init__(self, blend: Blend, feed: Feed, processor: AFNextProcessor):
        self.blend, self.feed, self.processor = blend, feed, processor

    def __getitem__(self, chunk: int) -> Plan:
        return make_plan(self.blend, self.feed, self.processor, chunk)


class _Decoder(Dataset):
    def __init__(self, blend: Blend, feed: Feed, processor: AFNextProcessor):
        self.blend, self.feed, self.processor = blend, feed, copy.copy(processor)
        self.processor.max_positions = None  # the plan keeps each sample within it

    def __getitem__(self, job: Job) -> MicroBatch:
        samples, prepared, bad, cut = [], [], list(job.bad), 0
        rows = zip(*(x.tolist() for x in (job.sources, job.records, job.tokens, job.longest)), strict=True)
        with _one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of recordings cut short, which are counted
            for source, record, tokens, longest in rows:
                try:
                    sample = self.blend.sample(source, record)
                    if not self.feed.prompts:
                        prepared.append(self._prepare(sample, tokens, longest))
                        cut += _count_cut(sample, prepared[-1], longest)
                    samples.append(sample)
                except (ValueError, OSError, RuntimeError) as error:
                    bad.append((self.blend.name(source, record), str(error)))
            if self.feed.prompts:
                return MicroBatch(None, samples, [sample.axis for sample in samples], bad)
            if not samples:
                return MicroBatch(self._empty(), [], [""], bad)
            return MicroBatch(self.processor.pack(prepared), samples, [sample.axis for sample in samples], bad, cut)

    def _prepare(self, sample: Sample, tokens: int, longest: float) -> Prepared:
        found = self.processor.prepare(sample.turns, training=True, max_seconds=longest)
        each = dict(zip(audios_of(sample), found.clips, strict=True))
        seconds = sum(clip.numel() for clip in each.values()) / SAMPLE_RATE
        if seconds > sample.seconds + SLACK * len(each) or len(found.ids) > tokens:
            raise ValueError(f"{seconds:.2f} s of audio, but the index says {sample.seconds:.2f} s")
        return found

    def _empty(self) -> Batch:
        ids = torch.tensor([self.processor.stop_ids[0]] * 2)
        return self.processor.pack([Prepared(ids, torch.full((2,), IGNORED), [])])


def _count_cut(sample: Sample, prepared: Prepared, longest: float) -> int:
    each = dict(zip(audios_of(sample), prepared.clips, strict=True))
    full = round(longest * SAMPLE_RATE)
    return sum(clip.numel() == full for clip in each.values()) if sample.seconds > longest else 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums as worker processes make them, which have one thread each."""
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
