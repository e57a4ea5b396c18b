"""A recording of any length that is asked about: in pieces that the model takes, several at a time, read in order."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.pieces import cut_samples
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.transcripts import longest_piece
from afn_model.prompt.conversation import Turn, read_conversation
from afn_model.serve.engine_thread import Delta
from afn_model.serve.errors import ApiError
from afn_model.serve.recording import Recording
from afn_model.serve.server import Server
from afn_model.serve.transcript_formats import Spoken, Transcript
from afn_model.serve.transcript_request import SpeechRequest

AHEAD = 4  # pieces of a recording that are asked about at the same time
ENDPOINTS = {"transcribe": "transcriptions", "translate": "translations"}


class Hearing:
    """A recording that is being asked about, piece by piece.

    Args:
        server: that answers.
        asked: what is asked.
        recording: what about.
        spans: [start, end) of its pieces in samples.
    """

    def __init__(self, server: Server, asked: SpeechRequest, recording: Recording, spans: list[tuple[int, int]]):
        self.server, self.asked, self.recording, self.spans = server, asked, recording, spans
        self._news: defaultdict[int, asyncio.Queue[Delta | Spoken | BaseException]] = defaultdict(asyncio.Queue)
        self._tasks = list[asyncio.Task[None]]()

    @classmethod
    async def of(cls, server: Server, asked: SpeechRequest, recording: Recording) -> Hearing:
        """Cuts a recording into pieces that the model takes.

        Raises:
            ApiError: 400, a text that no prompt may hold.
        """
        try:
            turns = about(asked, "a recording")
        except ValueError as error:
            raise ApiError(400, f"prompt: {error}", param="prompt") from None
        tokens = SamplingParams().max_new_tokens
        fits = longest_piece(server.processor, turns, tokens, spoken=True)
        # Where not even a second fits, the error is the model's.
        longest = min(server.settings.max_seconds, math.inf if fits < 1 else fits, asked.chunk_seconds or math.inf)
        return cls(server, asked, recording, await asyncio.to_thread(cut_samples, recording.pcm, longest))

    def transcript(self, pieces: list[Spoken]) -> Transcript:
        asked, pcm = self.asked, self.recording.pcm
        return Transcript(asked.task, asked.language, asked.temperature, pcm, pieces, self.server.processor)

    async def __aenter__(self) -> Hearing:
        following = iter(range(len(self.spans)))
        self._tasks = [asyncio.create_task(self._listen(following)) for _ in range(min(AHEAD, len(self.spans)))]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def news(self) -> AsyncIterator[Delta | Spoken]:
        """What the answers grow by, those of a piece after those of the one before it, and each as a whole.

        Raises:
            Exception: what went wrong.
        """
        for number in range(len(self.spans)):
            while True:
                found = await self._news[number].get()
                if isinstance(found, BaseException):
                    raise found
                yield found
                if isinstance(found, Spoken):
                    break
            del self._news[number]

    async def _listen(self, following: Iterator[int]) -> None:
        for number in following:
            try:
                await self._answer(number)
            except Exception as error:
                self._news[number].put_nowait(error)

    async def _answer(self, number: int) -> None:
        """Asks about a piece; behind the first one, again while the server is full: the recording was admitted."""
        while True:
            try:
                return await self._answer_now(number)
            except ApiError as error:
                if error.param == "messages":
                    error.param = "file"
                if error.status != 429 or number == 0:
                    raise
                await asyncio.sleep(error.retry_after or 1.0)

    async def _answer_now(self, number: int) -> None:
        start, end = self.spans[number]
        asked, news, whole = self.asked, self._news[number], Delta(0)
        turns, params = about(asked, self.recording.pcm[start:end]), asked.sampling((end - start) / SAMPLE_RATE)
        async with self.server.ask(turns, params, endpoint=ENDPOINTS[asked.task]) as stream:
            async for delta in stream:
                delta.check()
                delta.tokens = delta.without_stop(self.server.processor.stop_ids)
                delta.logprobs = delta.logprobs[: len(delta.tokens)]
                whole.join(delta)
                news.put_nowait(delta)
            counts = (stream.prompt_tokens, stream.audio_tokens, stream.cached_tokens)
        bounds = (start / SAMPLE_RATE, end / SAMPLE_RATE)
        news.put_nowait(Spoken(*bounds, whole.text, whole.tokens, whole.logprobs, str(whole.reason), *counts))


def about(asked: SpeechRequest, source: Any) -> list[Turn]:
    """The conversation that asks about a recording.

    Raises:
        ValueError: a token of the prompt's own in the question.
    """
    parts = [{"type": "audio", "audio": source}, {"type": "text", "text": asked.question}]
    return read_conversation([{"role": "user", "content": parts}])
