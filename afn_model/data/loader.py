"""The trainer's batches: one process plans them, several decode them, and they are the same whatever their number.

loader = Loader(config, processor, dp_rank=rank // sp_size, dp_size=world_size // sp_size, workers=4, position=saved)
for global_batch in loader:
    for micro in global_batch: ...                      # one bin each: packed ids, labels, int16 samples
    saved = global_batch.position                       # where the next step begins
"""

from __future__ import annotations

import copy
import ctypes
import gc
import itertools
import multiprocessing.util
import os
import signal
import sys
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader, Dataset

from afn_distributed.comm import Comm
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.data.decode import SampleDecoder
from afn_model.data.micro_batch import BadTally, GlobalBatch, MicroBatch, listed
from afn_model.data.plan import (
    TOKENS_PER_SECOND,
    Blend,
    ChunkPlan,
    DataConfig,
    DecodeJob,
    Position,
    plan_chunk,
)
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.transport import Failure, Parcel

__all__ = ["BadTally", "DataConfig", "GlobalBatch", "Loader", "MicroBatch", "Position"]

PREFETCHED = 2 << 30  # bytes of audio that one rank's workers make ahead, where it takes no more than a job for each
PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when the thread that forked it ends


class Loader:
    """The endless stream of a data-parallel rank's global batches from a position on.

    What a global batch holds depends on config and processor alone, not on ranks, workers or restarts.

    Args:
        config: what to read.
        processor: of the model; windows are int16 whatever its ``pcm_dtype``.
        dp_rank, dp_size: which part of every global batch; ranks that share sequences have the same ``dp_rank``.
        workers: processes that decode, beside one that plans; 0 does everything in this process. Each has at most two
            micro-batches made or in the making, one where two would be more than ``PREFETCHED`` bytes in all.
        position: where to begin.
        pin: put what workers have made into page-locked memory, for a GPU.
        group: the ranks that share sequences, which all have this ``dp_rank``. They decode micro-batches in turn, and
            tell one another what is in them: the others get a batch without its samples (``MicroBatch.source``).

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
        pin: bool = False,
        group: Comm | None = None,
    ):
        if not 0 <= dp_rank < dp_size:
            raise ValueError(f"dp_rank {dp_rank} of dp_size {dp_size}")
        if config.bins % dp_size:
            raise ValueError(f"{config.bins} bins of a step cannot be shared by {dp_size} data-parallel ranks")
        if min(position.chunk, position.step, position.carried) < 0 or position.carried >= config.bins:
            raise ValueError(f"position {position}")
        if position.change != config.change:
            raise ValueError(f"position {position}, but the blend has changed {config.change} times")
        self.config, self.dp_rank, self.dp_size = config, dp_rank, dp_size
        self.workers, self.position, self.pin = workers, position, pin and workers > 0
        self.group = group
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

    @property
    def ahead(self) -> int:
        """Jobs that each worker has at a time."""
        config = self.config
        seconds = config.context / TOKENS_PER_SECOND
        if config.prompts_only:
            seconds = config.max_seconds * config.bins / self.dp_size
        most = 2 * SAMPLE_RATE * seconds  # bytes of a job: its samples are int16
        return 2 if 2 * self.workers * most <= PREFETCHED else 1

    def __iter__(self) -> Generator[GlobalBatch, None, None]:
        heads: deque[_Head | ValueError] = deque()  # one for each step whose jobs have been handed out
        decoder = SampleDecoder(self.blend, self.config, self.processor)
        decoded = _stream(decoder, self._jobs(heads), self.workers, self.ahead, self.pin)
        early: deque[Parcel | Failure] = deque()
        parcels = iter(lambda: early.popleft() if early else next(decoded), None)
        tally = BadTally(self.config.bad_share, self.blend.records)
        while True:
            while not heads:  # a step's header comes with a job of this rank, which may be of a later step
                early.append(next(decoded))
            head = heads.popleft()
            if isinstance(head, ValueError):
                raise head
            micro = self._micro(parcels, head, tally)
            facts = {"count": head.jobs, "supervised": head.supervised, "ends_chunk": head.ends_chunk}
            yield GlobalBatch(micro, head.position, head.seen, **facts)
            for _ in micro:  # what nobody has read
                pass

    def planned(self) -> Iterator[list[DecodeJob]]:
        """The same batches before anything is decoded: this rank's jobs of each step, one for each micro-batch.

        Raises:
            ValueError: what iterating raises before it decodes.
        """
        heads: deque[_Head | ValueError] = deque()
        jobs = self._jobs(heads)
        for first in jobs:
            head = heads.popleft()
            if isinstance(head, ValueError):
                raise head
            yield [first, *itertools.islice(jobs, head.jobs - 1)]

    def _micro(self, parcels: Iterator[Parcel | Failure], head: _Head, tally: BadTally) -> Iterator[MicroBatch]:
        """A step's micro-batches; its bad samples are judged before its last one is trained on."""
        read = []
        for number in range(head.turn, head.turn + head.jobs):
            one = self._shared(next(parcels), number) if self._mine(number) else self._shared(None, number)
            if self.config.on_long == "error":
                for name, why in one.dropped:
                    raise ValueError(f"{name}: {why}")
            read.append(MicroBatch(None, one.samples, [], one.bad, one.cut, one.dropped))
            if len(read) == head.jobs:
                tally.add(read, head.ends_chunk)
            yield one
            del one

    def _mine(self, number: int) -> bool:
        """Whether this rank decodes a job."""
        return self.group is None or number % self.group.size == self.group.rank

    def _shared(self, parcel: Parcel | Failure | None, number: int) -> MicroBatch:
        """A micro-batch that one rank of the group has decoded, the others without its samples.

        What it found to be bad is bad for all of them: nobody else has looked at it.
        """
        if self.group is None:
            assert parcel is not None, "this rank decodes every job"
            return parcel.unpack()
        one, light = None, parcel
        if isinstance(parcel, Parcel):
            one = parcel.unpack()
            batch = one.batch if one.batch.pcm is None else replace(one.batch, pcm=one.batch.pcm[:0])
            light = Parcel.of(replace(one, batch=batch))
        source = number % self.group.size
        found = self.group.gather_objects(light)[source]  # a failure too, or the others would wait for this rank
        return replace(found.unpack() if one is None else one, source=source)

    def _jobs(self, heads: deque) -> Iterator[DecodeJob]:
        """This rank's jobs in order; puts each step's header into ``heads`` before its first job.

        Jobs are handed out ahead of time, so an error in a plan waits for its turn in ``heads``.
        """
        planner = _Planner(self.blend, self.config, self.processor)
        plans = _stream(planner, itertools.count(self.position.chunk), min(self.workers, 1))
        size, start, turn = self.config.bins, self.position, 0
        waiting: list[tuple[ChunkPlan, int]] = []  # bins of a step that is not whole yet
        for plan in plans:
            first, step, carried = 0, 0, len(waiting)
            if start is not None:
                step, carried, start = start.step, start.carried, None
                first = step * size - carried
            if wrong := _wrong(plan, first):
                heads.append(ValueError(wrong))
                yield DecodeJob.of([])
                return
            plan = plan.after(carried)
            waiting += [(plan, b) for b in range(first, plan.bins)]
            while len(waiting) >= size or (waiting and self.blend.ends_epoch(plan.chunk)):
                bins, waiting, step = waiting[:size], waiting[size:], step + 1
                last = plan.bins - len(waiting)
                position = Position(plan.chunk, step, carried) if waiting else Position(plan.chunk + 1)
                position = replace(position, change=self.config.change)
                # Bins are dealt out, so that a short step is short for all ranks.
                mine = [bins[b : b + 1] for b in range(self.dp_rank, size, self.dp_size)]
                jobs = [[each.job(range(b, b + 1)) for each, b in some] for some in mine]
                if self.config.prompts_only:
                    jobs = [[job for some in jobs for job in some]]
                heads.append(
                    _Head(
                        turn,
                        len(jobs),
                        position,
                        self.blend.span(plan.chunk).start + plan.done(last),
                        sum(each.supervised_in(b) for each, b in bins),
                        any(b + 1 == each.bins for each, b in bins),
                    )
                )
                yield from (DecodeJob.of(job) for number, job in enumerate(jobs, turn) if self._mine(number))
                turn += len(jobs)


@dataclass(frozen=True)
class _Head:
    turn: int
    jobs: int
    position: Position
    seen: int
    supervised: int
    ends_chunk: bool


def _wrong(plan: ChunkPlan, first: int) -> str | None:
    if plan.error:
        return plan.error
    if not plan.bins:
        if not plan.dropped:
            return f"all {len(plan.bad)} samples of chunk {plan.chunk} are bad: {listed(plan.bad)}"
        left_out = plan.bad + plan.dropped
        return f"all {len(left_out)} samples of chunk {plan.chunk} are too long or bad: {listed(left_out)}"
    if not 0 <= first < plan.bins:
        return f"bin {first} is not one of the {plan.bins} of chunk {plan.chunk}: the data has changed"
    return None


def _stream(dataset: Dataset, keys: Iterator, workers: int, ahead: int = 2, pin: bool = False) -> Iterator:
    """``dataset[key]`` for each key in order, made by worker processes, ``ahead`` for each of them."""
    others = set(multiprocessing.active_children())
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # or every loader draws from the global one
        worker_init_fn=_begin_worker,
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


def _begin_worker(_: int) -> None:
    gc.enable()  # a trainer collects at certain steps, of which a worker knows nothing
    _outlive_signals()


def _outlive_signals() -> None:
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
