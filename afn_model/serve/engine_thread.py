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
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from afn_model.infer.engine import Engine
from afn_model.infer.finish import Reason
from afn_model.infer.request import Growing, Request
from afn_model.serve.errors import ApiError
from afn_model.serve.step_thread import EngineDied, StepThread, tell

log = logging.getLogger("afn.serve")


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


class EngineThread(StepThread[Engine, Growing]):
    """Steps an engine while it has work.

    Args:
        engine: nobody else may use it from now on but through ``call`` and ``post``.
        on_step: called in the thread after each step with its seconds and the answers that grew.
    """

    def __init__(self, engine: Engine, on_step: Callable[[float, list[Growing]], None] | None = None):
        super().__init__(engine, "engine")
        self.on_step = on_step
        self._told: dict[Growing, _PassedOn] = {}

    def busy(self) -> bool:
        return bool(self.engine.scheduler.running()) or self.engine.pending is not None

    def step(self) -> list[Growing]:
        return self.engine.step()

    def stepped(self, seconds: float, grown: list[Growing]) -> None:
        if self.on_step is not None:
            self.on_step(seconds, grown)
        self._pass_on(grown)

    def settle(self) -> None:
        self._pass_on([])

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
            tell(loop, partial(_take, deltas[0] + deltas[1]))

    def leave(self) -> None:
        for growing in [growing for growing in self._told if growing.reason is None]:
            growing.reason, growing.error = "abort", self.error
        self._pass_on([])


def _take(deltas: Deltas) -> None:
    for stream, delta in deltas:
        stream.take(delta)
