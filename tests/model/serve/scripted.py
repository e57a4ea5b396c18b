"""Stands in for the engine behind a server: every question is answered by a script, word by word."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor
from afn_model.serve.engine_thread import Delta
from afn_model.serve.server import Server, seconds_of

LOGPROB = -0.25  # of every token
TEXT_TOKENS = 30  # of every prompt


@dataclass(frozen=True)
class ScriptedQuestion:
    """What was asked: the conversation, how it is answered, and for which endpoint."""

    turns: Sequence[Turn]
    params: SamplingParams
    endpoint: str
    options: dict[str, Any]

    @property
    def text(self) -> str:
        """The last turn's, without its recordings."""
        return "".join(part for part in self.turns[-1].parts if isinstance(part, str))

    @property
    def samples(self) -> list[int]:
        """Of each recording."""
        return [round(seconds_of(audio) * SAMPLE_RATE) for turn in self.turns for audio in turn.audios]


class ScriptedStream:
    """As an ``AnswerStream``."""

    def __init__(self, processor: AFNextProcessor, question: ScriptedQuestion, text: str, reason: str):
        self.processor, self.text, self.reason = processor, text, reason
        self.audio_tokens, self.cached_tokens = sum(samples // 640 for samples in question.samples), 0
        self.prompt_tokens = TEXT_TOKENS + self.audio_tokens

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for word in re.findall(r"\s*\S+\s*", self.text):
            tokens = self.processor.tokenizer.encode(word, add_special_tokens=False).ids
            yield Delta(0, word, tokens, [LOGPROB] * len(tokens))
            await asyncio.sleep(0)
        end = self.processor.stop_ids[:1] if self.reason == "stop" else []
        yield Delta(0, "", end, [LOGPROB] * len(end), reason=self.reason)  # type: ignore[arg-type]

    async def ended(self) -> list[Delta]:
        whole = Delta(0)
        async for delta in self:
            whole.join(delta)
        return [whole]


@dataclass
class Script:
    """What a server says instead of its model's answers.

    Args:
        server: whose ``ask`` is replaced.
        answer: to a question: a text, or a text and why it ends; what it raises is the answer's error.
        asked: questions so far.
        left: set when an answer has been left before its end.
        running, most: answers that grow now, and have grown at the same time.
    """

    server: Server
    answer: Callable[[ScriptedQuestion], Awaitable[str | tuple[str, str]]]
    asked: list[ScriptedQuestion] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    running: int = 0
    most: int = 0

    def __post_init__(self):
        self.server.ask = self.ask  # type: ignore[method-assign]

    @asynccontextmanager
    async def ask(
        self, turns: Sequence[Turn], params: SamplingParams, *, endpoint: str = "chat", **options: Any
    ) -> AsyncIterator[ScriptedStream]:
        question = ScriptedQuestion(turns, params, endpoint, options)
        self.asked.append(question)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            said = await self.answer(question)
            text, reason = (said, "stop") if isinstance(said, str) else said
            yield ScriptedStream(self.server.processor, question, text, reason)
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise
        finally:
            self.running -= 1


def always(text: str, reason: str = "stop") -> Callable[[ScriptedQuestion], Awaitable[tuple[str, str]]]:
    """The same answer to every question."""

    async def answer(_: ScriptedQuestion) -> tuple[str, str]:
        return text, reason

    return answer
