"""Answers as OpenAI's API writes them: whole ones, and what their parts have in common with streamed ones."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from afn_model.infer.batch_lines import Usage
from afn_model.infer.request import Growing
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.token_logprobs import writer
from afn_model.serve.answer_times import times_of
from afn_model.serve.chat_audio import HeardChat
from afn_model.serve.chat_request import ChatRequest, misfit
from afn_model.serve.chat_speech import ChatSpeech
from afn_model.serve.engine_thread import AnswerStream, Delta
from afn_model.serve.reasoning import Reasoning
from afn_model.serve.server import Server

FINISH = {"repetition": "stop"}  # what OpenAI has no word for


@dataclass
class Chat:
    """A conversation that is being answered.

    Args:
        server: that answers.
        asked: by whom.
        params, prediction: of the answers.
        opening: where they begin, as ``AFNextProcessor.prepare`` is told.
        heard: the conversation.
        captions: what the text model read in the place of recordings, for ``afn.captions``.
        arrived: when the request came, by the engine's clock.
        admitted: whether it has its place already.
        speech: its sound; None where it has none.
    """

    server: Server
    asked: ChatRequest
    params: SamplingParams
    prediction: str
    opening: dict[str, bool]
    heard: HeardChat
    captions: list[dict[str, Any]]
    arrived: float
    admitted: bool = False
    speech: ChatSpeech | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    choices: list[Choice] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)

    @asynccontextmanager
    async def answers(self) -> AsyncIterator[AnswerStream]:
        """The engine's answers, as ``Server.ask``.

        Raises:
            ApiError: the request cannot be answered.
        """
        async with AsyncExitStack() as stack:
            options: dict[str, Any] = {"prediction": self.prediction, "priority": -self.asked.priority}
            options["admitted"] = self.admitted
            options |= self.opening
            asking = self.server.ask(self.heard.turns, self.params, **options)
            try:
                stream = await stack.enter_async_context(asking)
            except ValueError as error:
                raise misfit(error, self.asked.model_dump(exclude={"messages"}, exclude_none=True)) from None
            self.choices = [Choice(self, stream, index) for index in range(self.params.n)]
            if self.speech is not None:
                await stack.enter_async_context(self.speech.open(stream))
            yield stream

    async def whole(self) -> dict[str, Any]:
        """``chat.completion``, when all answers have ended.

        Raises:
            ApiError: one of them could not be completed.
        """
        async with self.answers() as stream:
            choices = self.choices
            async for delta in stream:
                choices[delta.sample].take(delta)
                if self.speech is not None:
                    self.speech.take(delta)
            for choice in choices:
                choice.close()
                await choice.look_for_times()
            sound = None if self.speech is None else await self.speech.whole(choices[0].parts.said)
            extra = choices[0].extra() | {"timestamps": [one for choice in choices for one in choice.times]}
            return {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.server.settings.name,
                "choices": [choice.as_json(sound) for choice in choices],
                "usage": self.count(stream),
                "system_fingerprint": self.server.fingerprint,
                "afn": extra,
            }

    def count(self, stream: AnswerStream) -> dict[str, Any]:
        """``usage`` of answers that have ended."""
        ended = [choice.growing.finish for choice in self.choices]
        usage = Usage(stream.prompt_tokens, stream.audio_tokens, stream.cached_tokens)
        said = sum(len(finish.answer) for finish in ended)
        thought = 0 if self.params.grammar is not None else sum(finish.thought for finish in ended)
        self.usage = usage.as_json(said, thought)
        if self.speech is not None and self.speech.said is not None:
            self.usage["completion_tokens_details"]["audio_tokens"] = self.speech.said.answer.times.chunks
        return self.usage


class Choice:
    """One of the answers.

    Args:
        chat: what it belongs to.
        stream: of the engine.
        index: its number.
    """

    def __init__(self, chat: Chat, stream: AnswerStream, index: int):
        self.chat, self.stream, self.index = chat, stream, index
        request = stream.request
        self.growing: Growing = request.answers[index]
        self.stop_ids = frozenset(request.params.stop_token_ids or ())
        splits = chat.params.grammar is None  # else all of it is of the form that is asked for
        self.parts = Reasoning(request.thinking and splits, splits=splits)
        self.text: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.times: list[dict[str, Any]] = []
        self.reason: str | None = None
        asks = chat.params.logprobs is not None
        self._written = writer(chat.server.processor.tokenizer) if asks else None

    def take(self, delta: Delta) -> tuple[str, str, list[dict[str, Any]]]:
        """What the answer has grown by.

        Returns:
            what thoughts, answer and ``logprobs.content`` grow by.

        Raises:
            ApiError: it could not be completed.
        """
        delta.check()
        if delta.text:
            self.text.append(delta.text)
        thought, said = self.parts.feed(delta.text)
        entries: list[dict[str, Any]] = []
        if self._written is not None:
            entries = self._written.entries(delta.without_stop(self.stop_ids), delta.logprobs, delta.top)
            self.logprobs += entries
        self.reason = delta.reason
        return thought, said, entries

    def close(self) -> tuple[str, str]:
        """As ``Reasoning.close``."""
        return self.parts.close()

    async def look_for_times(self) -> None:
        """The times that the answer states; where they stand is counted in ``reasoning`` and in ``content``."""
        chat, thinking = self.chat, self.stream.request.thinking
        verify = bool(chat.asked.afn_verify)
        for found in await times_of(chat.server, "".join(self.text), chat.heard.recordings, thinking, verify=verify):
            thought, *span = self.parts.place(*found["span"])
            self.times.append(found | {"where": "think" if thought else "answer", "span": span, "choice": self.index})

    @property
    def finish(self) -> str | None:
        """Why it has ended, in OpenAI's words."""
        return None if self.reason is None else FINISH.get(self.reason, self.reason)

    def as_json(self, sound: dict[str, Any] | None = None) -> dict[str, Any]:
        """As one of ``choices``; ``sound`` is ``message.audio``, whose transcript then is the text."""
        thought = self.parts.thought or None
        message: dict[str, Any] = {"role": "assistant", "content": self.parts.said, "refusal": None}
        if sound is not None:
            message |= {"content": None, "audio": sound}
        return {
            "index": self.index,
            "message": message | {"reasoning": thought, "reasoning_content": thought},
            "logprobs": None if self._written is None else {"content": self.logprobs, "refusal": None},
            "finish_reason": self.finish,
            "afn": {"finish_reason": self.reason},
        }

    def extra(self) -> dict[str, Any]:
        """``afn``: what OpenAI's API has no place for."""
        heard, sequence, arrived = self.chat.heard.recordings, self.growing.sequence, self.chat.arrived
        first, last = [*self.growing.times, *2 * [self.chat.server.thread.engine.clock()]][:2]
        captions = {"captions": self.chat.captions} if self.chat.captions else {}
        speech = {} if self.chat.speech is None else self.chat.speech.times()
        return (
            captions
            | speech
            | {
                "finish_reason": self.reason,
                "timestamps": self.times,
                "audio": [{"id": one.id, "seconds": one.seconds, "windows": one.windows} for one in heard],
                "timing": {
                    "queue": max(0.0, (sequence.began or last) - (sequence.arrived or last)),
                    "first_token": first - arrived,
                    "total": last - arrived,
                },
            }
        )
