"""The engine in a thread of its own; what others want of it is done between its steps.

thread = EngineThread(engine)
thread.start()
answers = await thread.submit(lambda engine: engine.add(batch, params)[0])
async for delta in answers:
    print(delta.text)
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from afn_model.infer.engine import Engine
from afn_model.infer.finish import Reason
from afn_model.infer.request import Growing, Request
from afn_model.serve.errors import ApiError

T = TypeVar("T")
FAILURES = 3  # steps in a row that may fail before the engine is given up
log = logging.getLogger("afn.serve")


class EngineDied(ApiError):
    """The engine's thread has ended, or its steps have failed again and again."""

    def __init__(self):
        super().__init__(503, "the engine has died; the server must be started again", code="engine_died")


@dataclass
class Delta:
    """What one answer has grown by since the last look at it.

    Args:
        sample: its number among the answers to the request.
        text: that may be shown from now on.
        tokens, logprobs, top: of the tokens that came, as of ``Growing``; the stop token is among them.
        reason: why the answer has ended; None while it goes on.
        error: what went wrong.
    """

    sample: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    reason: Reason | None = None
    error: BaseException | None = None

    def join(self, later: Delta) -> None:
        self.text += later.text
        self.tokens += later.tokens
        self.logprobs += later.logprobs
        self.top += later.top
        self.reason, self.error = later.reason, later.error

    def without_stop(self, stop_ids: Collection[int]) -> list[int]:
        """Its tokens, but for the stop token that ends the answer."""
        ended = self.reason is not None and self.tokens and self.tokens[-1] in stop_ids
        return self.tokens[:-1] if ended else self.tokens

    def check(self) -> None:
        """Raises:
        ApiError: the answer was begun and could not be completed, which is never the client's fault.
        """
        if self.reason == "abort" and (self.error is None or isinstance(self.error, EngineDied)):
            raise ApiError(503, "the server ends; the answer was not completed", code="engine_died")
        if self.error is not None or self.reason in ("abort", "error"):
            raise ApiError(500, "the server could not complete this answer", code="internal_error")


class AnswerStream:
    """The answers to one request, as they grow.

    Iterating gives what has come since the last time, so that a slow reader holds no more than its answer. An iteration
    that is left early, or a task that is cancelled, must ``abort``; ``async with`` does.
    """

    def __init__(self, thread: EngineThread, request: Request, loop: asyncio.AbstractEventLoop):
        self.thread, self.request, self.loop = thread, request, loop
        self.began = time.monotonic()
        self._changed = asyncio.Event()
        self._ready: dict[int, Delta] = {}
        self._open = len(request.answers)

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while self._open:
            await self._changed.wait()
            self._changed.clear()
            ready, self._ready = self._ready, {}
            for delta in ready.values():
                self._open -= delta.reason is not None
                yield delta

    async def ended(self) -> list[Delta]:
        """The whole answers, in their order.

        Raises:
            ApiError: as ``Delta.check``.
        """
        whole = {sample: Delta(sample) for sample in range(len(self.request.answers))}
        async for delta in self:
            delta.check()
            whole[delta.sample].join(delta)
        return list(whole.values())

    def abort(self) -> None:
        """Ends what has not ended; pages are free after the step that runs."""
        if self._open:
            self.thread.post(lambda engine: engine.abort(self.request))

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt.ids)

    @property
    def audio_tokens(self) -> int:
        return sum(span.stop - span.start for span in self.request.prompt.windows)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt whose keys and values had been computed before; known with the first token."""
        return self.request.answers[0].sequence.reused

    def take(self, delta: Delta) -> None:
        """Called in the loop's thread."""
        if delta.sample in self._ready:
            self._ready[delta.sample].join(delta)
        else:
            self._ready[delta.sample] = delta
        self._changed.set()


@dataclass
class _PassedOn:
    """What of an answer has been passed on."""

    stream: AnswerStream
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    top: int = 0


Deltas = list[tuple[AnswerStream, Delta]]


class EngineThread:
    """Steps an engine while it has work.

    Args:
        engine: nobody else may use it from now on but through ``call`` and ``post``.
        on_step: called in the thread after each step with its seconds and the answers that grew.
    """

    def __init__(self, engine: Engine, on_step: Callable[[float, list[Growing]], None] | None = None):
        self.engine, self.on_step = engine, on_step
        self.error: BaseException | None = None
        self.stepping_since: float | None = None
        self._wanted: queue.SimpleQueue[Callable[[Engine], object] | None] = queue.SimpleQueue()
        self._closing, self._closed = threading.Lock(), False
        self._told: dict[Growing, _PassedOn] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; answers that grow end as aborted."""
        self._stopping = True
        self._wanted.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closed

    def post(self, work: Callable[[Engine], object]) -> None:
        """Has something done between two steps; nobody waits for it."""
        with self._closing:
            if not self._closed:
                self._wanted.put(work)

    async def call(self, work: Callable[[Engine], T]) -> T:
        """Does something with the engine between two of its steps.

        Raises:
            EngineDied: there is nobody to do it.
            Exception: what ``work`` raises.
        """
        loop, found = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(result: object, error: BaseException | None) -> None:
            if found.done():
                return
            if error is None:
                found.set_result(result)
            else:
                found.set_exception(error)

        def wanted(engine: Engine) -> None:
            try:
                if self._closed:
                    raise EngineDied
                result, error = work(engine), None
            except BaseException as raised:
                result, error = None, raised
            _tell(loop, partial(settle, result, error))

        with self._closing:
            if self._closed:
                raise EngineDied
            self._wanted.put(wanted)
        return await found

    async def submit(self, add: Callable[[Engine], Request]) -> AnswerStream:
        """The answers to a request that ``add`` makes."""
        loop, made = asyncio.get_running_loop(), list[AnswerStream]()

        def begin(engine: Engine) -> AnswerStream:
            stream = AnswerStream(self, add(engine), loop)
            made.append(stream)
            for growing in stream.request.answers:
                told = self._told[growing] = _PassedOn(stream)
                growing.on_text = told.text.append
            self._pass_on([growing for growing in stream.request.answers if growing.reason is not None])
            return stream

        try:
            return await self.call(begin)
        except asyncio.CancelledError:
            self.post(lambda engine: [engine.abort(stream.request) for stream in made])
            raise

    def _run(self) -> None:
        engine, failures = self.engine, 0
        try:
            while not self._stopping:
                busy = bool(engine.scheduler.running()) or engine.pending is not None
                self._do_wanted(wait=not busy)
                if not busy:
                    continue
                grown: list[Growing] = []
                began = self.stepping_since = time.monotonic()
                try:
                    grown = engine.step()
                    failures = 0
                except Exception as error:
                    log.exception("a step failed")
                    failures += 1
                    if failures == FAILURES:
                        raise EngineDied from error
                finally:
                    self.stepping_since = None
                if self.on_step is not None:
                    self.on_step(time.monotonic() - began, grown)
                self._pass_on(grown)
        except BaseException as error:
            self.error = error
            log.exception("the engine has died")
        finally:
            self._end()

    def _do_wanted(self, *, wait: bool) -> None:
        try:
            while (work := self._wanted.get(block=wait)) is not None:
                wait = False
                self._do(work)
        except queue.Empty:
            pass
        self._pass_on([])

    def _do(self, work: Callable[[Engine], object]) -> None:
        try:
            work(self.engine)
        except Exception:
            log.exception("work for the engine failed")

    def _pass_on(self, grown: list[Growing]) -> None:
        """Tells each loop at once what has come of all answers, those that were aborted included."""
        loops: dict[asyncio.AbstractEventLoop, tuple[Deltas, Deltas]] = {}  # those who have waited longest come first
        ended = [growing for growing in self._told if growing.reason is not None]
        for growing in dict.fromkeys([*grown, *ended]):
            told = self._told.get(growing)
            if told is None:
                continue
            text, told.text[:] = "".join(told.text), []
            first, top = told.tokens, told.top
            told.tokens, told.top = len(growing.tokens), len(growing.top)
            delta = Delta(
                growing.sample,
                text,
                growing.tokens[first:],
                growing.logprobs[first:],
                growing.top[top:],
                growing.reason,
                growing.error,
            )
            if growing.reason is not None:
                del self._told[growing]
            if growing.reason == "error":
                log.error("an answer could not be completed", exc_info=growing.error)
            deltas = loops.setdefault(told.stream.loop, ([], []))
            deltas[first > 0].append((told.stream, delta))
        for loop, deltas in loops.items():
            _tell(loop, partial(_take, deltas[0] + deltas[1]))

    def _end(self) -> None:
        """Nobody waits for what will not come."""
        with self._closing:
            self._closed = True
        for growing in [growing for growing in self._told if growing.reason is None]:
            growing.reason, growing.error = "abort", self.error
        self._pass_on([])
        while True:
            try:
                work = self._wanted.get_nowait()
            except queue.Empty:
                return
            if work is not None:
                self._do(work)


def _take(deltas: Deltas) -> None:
    for stream, delta in deltas:
        stream.take(delta)


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """Has a loop call something, if it still runs."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(what)
