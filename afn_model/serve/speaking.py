"""The voice in a thread of its own: what many clients have said to them is made together, a step at a time.

async with server.voice.open(speaker) as said:
    said.say(ids)
    said.end()
    async for pcm in said:
        ...
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afn_model.serve.errors import ApiError
from afn_model.serve.step_thread import EngineDied, StepThread, tell
from afn_model.speech.conversation import SpokenAnswer, SpokenAnswers

if TYPE_CHECKING:
    from afn_model.speech.speaker import SpeakerPrompt

DEFAULT = "default"  # the voice that needs no recording
Sounded = tuple[SpokenAnswer, Tensor]
log = logging.getLogger("afn.serve")


class SaidStream:
    """One answer's sound, as it is made.

    Iterating gives what has come since the last time, [n] float32. What is not read holds up what is still to be made
    (``SpokenAnswer``), so that a slow reader costs no more than ``UNREAD`` seconds of sound.
    """

    def __init__(self, thread: SpeechThread, answer: SpokenAnswer, loop: asyncio.AbstractEventLoop):
        self.thread, self.answer, self.loop = thread, answer, loop
        self._changed = asyncio.Event()
        self._ready: list[Tensor] = []
        self._over = False

    def say(self, ids: Sequence[int]) -> None:
        """More of the text: tokens as the language model makes them."""
        if ids:
            self.thread.post(lambda answers: self.answer.say(ids, answers.clock()))

    def end(self) -> None:
        """No more text comes."""
        self.thread.post(lambda answers: self.answer.end(answers.clock()))

    async def __aiter__(self) -> AsyncIterator[Tensor]:
        """Raises:
        ApiError: it could not be completed.
        """
        while not self._over or self._ready:
            await self._changed.wait()
            self._changed.clear()
            ready, self._ready = self._ready, []
            if ready:
                pcm = torch.cat(ready)
                if self.answer.heard(len(pcm)):
                    self.thread.post(lambda _: None)  # it goes on
                yield pcm
        self.check()

    def check(self) -> None:
        """Raises:
        ApiError: the answer was begun and could not be completed, which is never the client's fault.
        """
        if self.answer.reason == "closed" or isinstance(self.answer.error, EngineDied):
            raise ApiError(503, "the server ends; the answer was not said to its end", code="engine_died")
        if self.answer.error is not None:
            raise ApiError(500, "the server could not say this", code="internal_error")

    def take(self, pcm: Tensor, over: bool) -> None:
        """Called in the loop's thread."""
        if len(pcm):
            self._ready.append(pcm)
        self._over |= over
        self._changed.set()


class SpeechThread(StepThread[SpokenAnswers, Sounded]):
    """Steps a voice while somebody has something said.

    Args:
        answers: nobody else may use them from now on but through ``call`` and ``post``.
        prompt: a speaker of samples [n] float32, a rate and who consented, when; called in a thread of its own.
        places: what is said at the same time; others wait.
        on_gap, on_end: called in the thread with the seconds between two chunks, and with each answer that has ended.
    """

    def __init__(
        self,
        answers: SpokenAnswers,
        prompt: Callable[[Tensor, int, str], SpeakerPrompt],
        *,
        places: int = 16,
        on_gap: Callable[[float], object] = lambda _: None,
        on_end: Callable[[SpokenAnswer], object] = lambda _: None,
    ):
        super().__init__(answers, "voice")
        self.prompt, self.on_gap, self.on_end = prompt, on_gap, on_end
        self.streams: dict[SpokenAnswer, SaidStream] = {}
        self._room, self._one_prompt = asyncio.Semaphore(places), asyncio.Lock()

    @property
    def rate(self) -> int:
        """Of the sound, Hz."""
        return self.engine.rate

    async def speaker(self, pcm: Tensor, rate: int, consent: str) -> SpeakerPrompt:
        """Somebody's voice, from a recording of it: beside the steps, and one at a time.

        Raises:
            ValueError: it is silent or too short, or nobody has consented.
        """
        async with self._one_prompt:
            return await asyncio.to_thread(self.prompt, pcm, rate, consent)

    @asynccontextmanager
    async def open(self, speaker: SpeakerPrompt | None = None, **options: Any) -> AsyncIterator[SaidStream]:
        """An answer that is said; what has not been said when the block is left is not.

        Args:
            speaker: whose voice; the default one if None.
            options: of ``SpokenAnswers.open``.

        Raises:
            EngineDied: there is nobody to say it.
        """
        loop, made = asyncio.get_running_loop(), list[SaidStream]()

        def begin(answers: SpokenAnswers) -> SaidStream:
            stream = SaidStream(self, answers.open(speaker, **options), loop)
            self.streams[stream.answer] = stream
            made.append(stream)
            return stream

        async with self._room:
            try:
                yield await self.call(begin)
            finally:
                self.post(lambda _: [stream.answer.stop() for stream in made])

    def busy(self) -> bool:
        return self.engine.busy

    def step(self) -> list[Sounded]:
        return self.engine.step()

    def stepped(self, seconds: float, grown: list[Sounded]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[SaidStream, Tensor, bool]]] = {}
        for answer, pcm in grown:
            if answer.times.gap is not None and len(pcm):
                self.on_gap(answer.times.gap)
            stream = self.streams.pop(answer) if answer.done else self.streams[answer]
            if answer.done:
                if answer.reason == "error":
                    log.error("an answer could not be said", exc_info=answer.error)
                self.on_end(answer)
            loops.setdefault(stream.loop, []).append((stream, pcm, answer.done))
        for loop, heard in loops.items():
            tell(loop, partial(_take, heard))

    def leave(self) -> None:
        self.engine.stop(None if self.error is None else EngineDied(self.name))
        self.stepped(0.0, [(answer, torch.zeros(0)) for answer in self.streams])


def _take(heard: list[tuple[SaidStream, Tensor, bool]]) -> None:
    for stream, pcm, over in heard:
        stream.take(pcm, over)
