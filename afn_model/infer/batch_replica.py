"""What answers the lines of a batch: an engine that is given lines and returns answers, here or in Ray's processes."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Lock
from typing import Any, Protocol

import torch

from afn_model.audio.digests import DecodedRecording
from afn_model.audio.recording import Audio, load
from afn_model.checks import said
from afn_model.infer.batch_lines import BatchLine, BatchRequest, Said, Usage, read_line, recording_key
from afn_model.infer.engine import Engine
from afn_model.infer.request import Growing, Request
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.token_logprobs import TokenLogprobs
from afn_model.prompt.batch import Prepared
from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor

KEPT = 4  # recordings that are kept decoded, for the next line about them
AHEAD = 4  # lines read ahead by each thread
QUEUED = 46_080  # tokens of prompts that wait in the engine
TURN = 0.5  # seconds after which an engine looks for new lines
Lines = Sequence[tuple[int, bytes]]
Rows = list[tuple[int, dict[str, Any]]]


class Replica:
    """An engine, and the lines that it answers.

    Args:
        engine: makes the engine, when the first recording has been read.
        processor: of its model.
        folder: what relative paths of records start from.
        defaults: how a line is answered that does not say.
        system: text of a system message for conversations that have none.
        together: answers that grow at the same time, at most.
        readers: threads that decode recordings ahead of the engine.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        processor: AFNextProcessor,
        *,
        folder: str,
        defaults: SamplingParams,
        system: str | None = None,
        together: int = 64,
        readers: int = 2,
    ):
        self.make, self.processor, self.folder, self.defaults = engine, processor, folder, defaults
        self.system, self.together = system, together
        self.written = TokenLogprobs(processor.tokenizer)
        self.engine: Engine | None = None
        self.pool = ThreadPoolExecutor(readers, "afn-batch")
        self.ahead = readers * AHEAD
        self.given: deque[tuple[int, bytes]] = deque()
        self.reading: deque[Future] = deque()
        self.running: list[tuple[BatchLine, BatchRequest, Request]] = []
        self.clips: OrderedDict[tuple, Future] = OrderedDict()
        self.lock = Lock()

    def work(self, lines: Lines) -> Rows:
        """Takes more lines, and answers what it has until some are done, or for half a second.

        Args:
            lines: (number, line) each.

        Returns:
            (number, line of the output) of those that are done.
        """
        self.given += lines
        until, done = time.monotonic() + TURN, []
        while (self.given or self.reading or self.running) and not done and time.monotonic() < until:
            done += self._admit()
            if self.engine is not None and self.running:
                with torch.inference_mode():
                    self.engine.step()
                done += [(one[0].number, self._answer(*one)) for one in self.running if one[2].done]
                self.running = [one for one in self.running if not one[2].done]
        return done

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self) -> Rows:
        """Lines that have been read go to the engine while it has room; the lines of those that it cannot take."""
        refused = []
        while True:
            while self.given and len(self.reading) < self.ahead:
                self.reading.append(self.pool.submit(self._read, *self.given.popleft()))
            if not self.reading or (self.running and not self.reading[0].done()):
                return refused
            line, found = self.reading[0].result()
            if not isinstance(found, str):
                request, prepared = found
                if self.running and not self._has_room(request.params.n, len(prepared.ids)):
                    return refused
                found = self._begin(line, request, prepared)
            self.reading.popleft()
            if found:
                refused.append((line.number, line.error(found)))

    def _has_room(self, answers: int, tokens: int) -> bool:
        assert self.engine is not None
        growing = sum(len(one[2].answers) for one in self.running)
        waiting = sum(len(sequence.prompt.ids) for sequence in self.engine.scheduler.waiting)
        return growing + answers <= self.together and (not waiting or waiting + tokens <= QUEUED)

    def _begin(self, line: BatchLine, request: BatchRequest, prepared: Prepared) -> str:
        """A line is answered from now on; else what is wrong with it."""
        self.engine = self.engine or self.make()
        prediction = None
        if request.prediction and not request.params.logprobs:  # the likeliest tokens are not known of drafts
            prediction = self.processor.tokenizer.encode(request.prediction, add_special_tokens=False).ids
        batch = self.processor.pack([prepared], ragged=True)
        prepared.clips.clear()
        try:
            (begun,) = self.engine.add(batch, request.params, keys=[line.random_key], prediction=prediction)
        except ValueError as error:
            return said(error)
        self.running.append((line, request, begun))
        return ""

    def _read(self, number: int, raw: bytes) -> tuple[BatchLine, tuple[BatchRequest, Prepared] | str]:
        """In a thread: a line with its recordings, or what is wrong with them."""
        line = read_line(raw, number)
        try:
            request = line.request(self.folder, self.defaults)
            turns = [replace(turn, parts=tuple(map(self._decoded, turn.parts))) for turn in request.turns]
            if self.system is not None and turns[0].role != "system":
                turns = [Turn("system", (self.system,)), *turns]
            opened = turns[-1].role == "assistant"
            prepared = self.processor.prepare(turns, continue_final_message=opened)
            context = self.processor.max_positions
            if len(prepared.ids) == context:
                raise ValueError(f"{context} tokens leave no room for an answer in a context of {context}")
        except ValueError as error:
            return line, said(error)
        return line, (request, prepared)

    def _decoded(self, part: str | Audio) -> str | Audio:
        """A part of a message, its recording decoded; once where several lines are about it."""
        if isinstance(part, str):
            return part
        key = recording_key(part)
        with self.lock:
            found, mine = self.clips.get(key), key not in self.clips
            if found is None:
                found = self.clips[key] = Future()
                while len(self.clips) > KEPT:
                    self.clips.popitem(last=False)
        if mine:
            of = self.processor
            try:
                pcm = load(part, strict=of.strict, max_seconds=of.max_seconds, dtype=of.pcm_dtype)
                found.set_result(Audio(DecodedRecording(pcm)))
            except BaseException as error:
                found.set_exception(error)
        return found.result()

    def _answer(self, line: BatchLine, request: BatchRequest, begun: Request) -> dict[str, Any]:
        if (error := next((one.error for one in begun.answers if one.error is not None), None)) is not None:
            return line.error(said(error), "not_finite", 500)
        ids, first = begun.prompt.ids, begun.answers[0].sequence
        usage = Usage(len(ids), ids.count(self.processor.sound_id), first.reused)
        return line.answer(request, [self._said(one, request.params) for one in begun.answers], usage)

    def _said(self, one: Growing, params: SamplingParams) -> Said:
        ids, logprobs = one.finish.answer, None
        if params.logprobs is not None:
            logprobs = self.written.entries(ids, one.logprobs, one.top)
        return Said(one.finish.text, one.reason or "abort", len(ids), logprobs)


class Workers(Protocol):
    """Replicas that work at the same time."""

    count: int

    def send(self, index: int, lines: Lines) -> None:
        """Gives a replica that has nothing to return lines, and lets it work."""

    def receive(self) -> tuple[int, Rows]:
        """What the first one returns that has something."""
        ...

    def close(self) -> None: ...


class OneReplica:
    """A replica in this process."""

    count = 1

    def __init__(self, replica: Replica):
        self.replica = replica
        self.lines: Lines = ()

    def send(self, index: int, lines: Lines) -> None:
        self.lines = lines

    def receive(self) -> tuple[int, Rows]:
        return 0, self.replica.work(self.lines)

    def close(self) -> None:
        self.replica.close()


class RayReplicas:
    """Replicas in processes of Ray: on the GPUs and machines of its cluster, or on this machine.

    Args:
        make: makes a replica in its process, and is pickled; called with what keeps open what it opens.
        count: how many.
        gpu: whether each has a GPU of its own; None where there are GPUs.

    Raises:
        ValueError: Ray is not installed, or the cluster has too few GPUs.
    """

    def __init__(self, make: Callable[[ExitStack], Replica], count: int, *, gpu: bool | None):
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError("--replicas needs Ray: pip install 'afn-kernels[cluster]'") from None
        self.ray: Any = ray
        self.count, self.calls = count, dict[Any, int]()
        self.started = not ray.is_initialized()
        if self.started:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        found = ray.cluster_resources()
        gpu = found.get("GPU", 0) > 0 if gpu is None else gpu
        resource = "GPU" if gpu else "CPU"
        if count > (there := int(found.get(resource, 0))):
            self.close()
            raise ValueError(f"{count} replicas need {count} {resource}s, and Ray has {there}")
        actor = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0)(RayReplica)
        self.actors = [actor.remote(make) for _ in range(count)]

    def send(self, index: int, lines: Lines) -> None:
        self.calls[self.actors[index].work.remote(lines)] = index

    def receive(self) -> tuple[int, Rows]:
        (call,), _ = self.ray.wait(list(self.calls))
        try:
            return self.calls.pop(call), self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            raise ValueError(f"a replica has failed, and the same command goes on: {said(error)}") from None

    def close(self) -> None:
        if self.started:
            self.ray.shutdown()


class RayReplica:
    """What runs in a process of Ray."""

    def __init__(self, make: Callable[[ExitStack], Replica]):
        self.opened = ExitStack()
        self.replica = make(self.opened)

    def work(self, lines: Lines) -> Rows:
        return self.replica.work(lines)
