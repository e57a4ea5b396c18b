"""The trainer's batches: one process plans them, several decode them, and they are the same whatever their number.

loader = Loader(config, processor, dp_rank=rank // sp_size, dp_size=world_size // sp_size, workers=4, position=saved)
for global_batch in loader:
    for micro in global_batch.micro: ...                # one bin each: packed ids, labels, int16 windows
    saved = global_batch.position                       # where the next step begins
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import multiprocessing.util
import os
import signal
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader, Dataset

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.data.plan import (
    SLACK,
    Blend,
    ChunkPlan,
    DataConfig,
    DecodeJob,
    Position,
    Unwanted,
    plan_chunk,
    reason,
    too_long,
)
from afn_model.data.records import Sample, audios_of
from afn_model.prompt.batch import IGNORED, Batch, Prepared
from afn_model.prompt.processor import AFNextProcessor

__all__ = ["DataConfig", "Loader", "MicroBatch", "Position", "GlobalBatch"]

_BAD_AT_LEAST = 10  # bad records before their share counts
_NAMED = 3  # bad records named when the loader stops
_LEFT_OUT = "the rest is left out"  # what decoding warns of where it cuts a recording
PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when the thread that forked it ends


@dataclass
class MicroBatch:
    """One bin of a global batch; with ``DataConfig.prompts_only``, all samples of this data-parallel rank.

    Args:
        batch: packed ids, labels and int16 windows; None with ``prompts_only``. An empty bin has two tokens without
            labels.
        samples: one for each sequence; none in an empty bin.
        axes: of each sequence; ``[""]`` in an empty bin.
        bad: (name, reason) of samples that could not be used.
        cut: recordings cut to the longest they may be.
        dropped: (name, reason) of samples left out because a recording is too long (``DataConfig.on_long``).
    """

    batch: Batch | None
    samples: list[Sample]
    axes: list[str]
    bad: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class GlobalBatch:
    """This data-parallel rank's part of the batch of one optimiser step.

    Args:
        micro: its micro-batches.
        position: of the next step.
        seen: samples consumed after this step, over all data-parallel ranks, bad and dropped ones included.
    """

    micro: list[MicroBatch]
    position: Position
    seen: int

    @property
    def cut(self) -> int:
        """Recordings of this rank's part that were cut."""
        return sum(micro.cut for micro in self.micro)

    @property
    def dropped(self) -> int:
        """Samples of this rank's part that were left out because a recording is too long."""
        return sum(len(micro.dropped) for micro in self.micro)


class Loader:
    """The endless stream of a data-parallel rank's global batches from a position on.

    What a global batch holds depends on config and processor alone, not on ranks, workers or restarts.

    Args:
        config: what to read.
        processor: of the model; windows are int16 whatever its ``pcm_dtype``.
        dp_rank, dp_size: which part of every global batch; ranks that share sequences have the same ``dp_rank``.
        workers: processes that decode, beside one that plans; 0 does everything in this process.
        position: where to begin.

    Raises:
        ValueError: a blend or dataset that cannot be used, bins that ``dp_size`` does not divide, and while iterating:
            too many bad records, a recording that is too long where that is an error, a position past the end of its
            chunk.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: AFNextProcessor,
        *,
        dp_rank: int = 0,
        dp_size: int = 1,
        workers: int = 0,
        position: Position = Position(),  # noqa: B008
    ):
        if not 0 <= dp_rank < dp_size:
            raise ValueError(f"dp_rank {dp_rank} of dp_size {dp_size}")
        if config.bins % dp_size:
            raise ValueError(f"{config.bins} bins of a step cannot be shared by {dp_size} data-parallel ranks")
        if min(position.chunk, position.step) < 0:
            raise ValueError(f"position {position}")
        self.config, self.dp_rank, self.dp_size = config, dp_rank, dp_size
        self.workers, self.position = workers, position
        self.blend = Blend(config)
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

    def __iter__(self) -> Iterator[GlobalBatch]:
        heads: deque[_Head | ValueError] = deque()  # one for each step whose jobs have been handed out
        jobs = self._jobs(heads)
        decoded = _stream(_Decoder(self.blend, self.config, self.processor), jobs, self.workers)
        tally = BadTally(self.config.bad_share, self.blend.records)
        for first in decoded:
            head = heads.popleft()
            if isinstance(head, ValueError):
                raise head
            micro = [first, *itertools.islice(decoded, head.jobs - 1)]
            if self.config.on_long == "error":
                for name, why in (sample for one in micro for sample in one.dropped):
                    raise ValueError(f"{name}: {why}")
            tally.add(micro, head.ends_chunk)
            yield GlobalBatch(micro, head.position, head.seen)

    def _jobs(self, heads: deque) -> Iterator[DecodeJob]:
        """This rank's jobs in order; puts each step's header into ``heads`` before its first job.

        Jobs are handed out ahead of time, so an error in a plan waits for its turn in ``heads``.
        """
        plans = _stream(
            _Planner(self.blend, self.config, self.processor),
            itertools.count(self.position.chunk),
            min(self.workers, 1),
        )
        begin = self.position.step
        for plan in plans:
            if wrong := _wrong(plan, begin):
                heads.append(ValueError(wrong))
                yield plan.job(range(0))
                return
            for step in range(begin, plan.steps):
                # Bins are dealt out, so that a short step is short for all ranks.
                bins = range(step * self.config.bins + self.dp_rank, (step + 1) * self.config.bins, self.dp_size)
                jobs = [bins] if self.config.prompts_only else [range(b, b + 1) for b in bins]
                last = step + 1 == plan.steps
                position = Position(plan.chunk + 1) if last else Position(plan.chunk, step + 1)
                heads.append(_Head(len(jobs), position, self.blend.span(plan.chunk).start + plan.done(step), last))
                yield from map(plan.job, jobs)
            begin = 0


@dataclass(frozen=True)
class _Head:
    jobs: int
    position: Position
    seen: int
    ends_chunk: bool


def _wrong(plan: ChunkPlan, begin: int) -> str | None:
    if plan.error:
        return plan.error
    if not plan.steps:
        if not plan.dropped:
            return f"all {len(plan.bad)} samples of chunk {plan.chunk} are bad: {_listed(plan.bad)}"
        left_out = plan.bad + plan.dropped
        return f"all {len(left_out)} samples of chunk {plan.chunk} are too long or bad: {_listed(left_out)}"
    if begin >= plan.steps:
        return f"step {begin} is past the {plan.steps} steps of chunk {plan.chunk}: the data has changed"
    return None


def _listed(bad: list[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in bad[:_NAMED])


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
        for one in micro:
            self.seen += len(one.samples) + len(one.bad) + len(one.dropped)
            self.unusable += len(one.bad) + len(one.dropped)
            self.bad.update(one.bad)
        nothing_good = ends_chunk and not self.whole and self.seen == self.unusable > 0
        self.whole |= ends_chunk
        met, bad = min(self.seen, self.records), len(self.bad)
        enough = _BAD_AT_LEAST if self.share else 1
        if (nothing_good and bad) or (bad >= enough and bad > self.share * met):
            named = _listed(list(self.bad.items()))
            raise ValueError(f"{bad} of {met} records are bad, more than {self.share:.2%}: {named}")


def _stream(dataset: Dataset, keys: Iterator, workers: int) -> Iterator:
    """``dataset[key]`` for each key in order, made ahead of time by worker processes."""
    others = set(multiprocessing.active_children())
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # or every loader draws from the global one
        worker_init_fn=_outlive_signals,
    )
    with _quiet_tokenizers():
        stream = iter(loader)  # forks the workers
    _started.update(set(multiprocessing.active_children()) - others)
    return stream


@contextmanager
def _quiet_tokenizers() -> Iterator[None]:
    """Within it, tokenizers does not warn of a fork; the variable that says so is unset again afterwards."""
    unset = "TOKENIZERS_PARALLELISM" not in os.environ
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        if unset:
            del os.environ["TOKENIZERS_PARALLELISM"]


def _outlive_signals(_: int) -> None:
    """Leaves it to the trainer what to do when the whole job is told to end; workers go when it goes."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None:
        # A worker that writes a plan longer than its pipe would otherwise outlive a trainer that is killed, for it
        # holds both ends of the pipe; and with it the trainer's stdout and sockets.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it was killed before the line above
            os._exit(1)


_started: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def _kill_started() -> None:
    for process in list(_started):
        if process._parent_pid == os.getpid() and process.is_alive():
            process.kill()


# At exit multiprocessing sends its children SIGTERM and joins them; ours ignore it, so they are killed before that.
multiprocessing.util.Finalize(None, _kill_started, exitpriority=100)


class _Planner(Dataset):
    """Plans chunks. Records are parsed and tokenised here and once more by the decoder: packing needs every length
    before a bin can be decoded, and the decoders keep no state, so that any worker can take any job."""

    def __init__(self, blend: Blend, config: DataConfig, processor: AFNextProcessor):
        self.blend, self.config, self.processor = blend, config, processor

    def __getitem__(self, chunk: int) -> ChunkPlan:
        return plan_chunk(self.blend, self.config, self.processor, chunk)


class _Decoder(Dataset):
    def __init__(self, blend: Blend, config: DataConfig, processor: AFNextProcessor):
        self.blend, self.config, self.processor = blend, config, copy.copy(processor)
        self.processor.max_positions = None  # the plan has already kept each sample within the context

    def __getitem__(self, job: DecodeJob) -> MicroBatch:
        samples, prepared, bad, cut, dropped = [], [], list(job.bad), 0, list(job.dropped)
        draws = zip(*(x.tolist() for x in (job.sources, job.records, job.tokens, job.longest)), strict=True)
        with _one_thread():
            for source, record, tokens, longest in draws:
                name = self.blend.name(source, record)
                try:
                    sample = self.blend.sample(source, record)
                    if not self.config.prompts_only:
                        made, shortened = self._prepare(sample, tokens, longest)
                        if shortened and self.config.on_long != "cut":
                            raise Unwanted(too_long("a recording", longest, self.config))
                        prepared.append(made)
                        cut += shortened
                    samples.append(sample)
                except Unwanted as error:
                    dropped.append((name, str(error)))
                except Exception as error:  # as in planning: one bad sample
                    bad.append((name, reason(error)))
        axes = [sample.axis for sample in samples]
        if self.config.prompts_only:
            return MicroBatch(None, samples, axes, bad, 0, dropped)
        if not samples:
            return MicroBatch(self._empty(), [], [""], bad, 0, dropped)
        return MicroBatch(self.processor.pack(prepared), samples, axes, bad, cut, dropped)

    def _prepare(self, sample: Sample, tokens: int, longest: float) -> tuple[Prepared, int]:
        """A sample with its audio, and how many of its recordings were cut."""
        with warnings.catch_warnings(record=True) as caught:  # warnings would come again in every epoch
            warnings.simplefilter("always")
            prepared = self.processor.prepare(sample.turns, training=True, max_seconds=longest)
        each = dict(zip(audios_of(sample), prepared.clips, strict=True))
        seconds = sum(clip.numel() for clip in each.values()) / SAMPLE_RATE
        if seconds > sample.seconds + SLACK * len(each) or len(prepared.ids) > tokens:
            raise ValueError(f"{seconds:.2f} s of audio, but the index says {sample.seconds:.2f} s")
        return prepared, sum(_LEFT_OUT in str(warning.message) for warning in caught)

    def _empty(self) -> Batch:
        ids = torch.tensor([self.processor.stop_ids[0]] * 2)
        return self.processor.pack([Prepared(ids, torch.full((2,), IGNORED), [])])


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as worker processes have: sums are then rounded alike with and without workers."""
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
