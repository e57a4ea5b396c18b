"""Conversations in, texts out: shared by command line, evaluation and demo."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from afn_model.checks import is_whole
from afn_model.infer.engine import Engine
from afn_model.infer.generate import explained
from afn_model.infer.pages import PAGE
from afn_model.infer.request import Growing, NotFinite, Request, seeded
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import Turn, is_conversation, read_conversation

if TYPE_CHECKING:
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch, Prepared
    from afn_model.prompt.processor import AFNextProcessor

# As many as a recording of half an hour has, the longest that the released models take.
BATCH_TOKENS = 46_080
OnProgress = Callable[[str, "list[int]", int, int], Any]


@dataclass(frozen=True)
class Answer:
    """What the model said, and how long that took.

    Args:
        text: the answer.
        prompt_tokens, answer_tokens: how many; the stop token is not counted.
        finish: "stop" where the model or a stop string ended the answer, "length" where ``max_new_tokens`` or the
            context did, "repetition" where it went in circles.
        seconds: "read", spent on this conversation's recordings; "load", on the weights, if they were read for it;
            "first_token", from the end of reading to the first token; "total", from the start of reading to the last.
        together: conversations that were being answered when its first token came, this one included.
        reused: tokens of the prompt whose keys and values had been computed before.
    """

    text: str
    prompt_tokens: int
    answer_tokens: int
    finish: str
    seconds: dict[str, float]
    together: int
    reused: int = 0


def answer(
    model: Network | Engine | Callable[[], Network | Engine],
    processor: AFNextProcessor,
    conversations: Sequence,
    params: SamplingParams | None = None,
    **options: Any,
) -> list[Answer]:
    """Answers conversations, each up to its last message.

    Args:
        model, processor, conversations, params, options: as of ``answers``.

    Returns:
        ``params.n`` answers to each conversation, in the order of the conversations whatever that of the answers.

    Raises:
        ValueError: the first error of ``answers``, that of a single conversation included.
    """
    found: dict[int, Answer] = {}
    for place, one in answers(model, processor, conversations, params, **options):
        if isinstance(one, ValueError):
            raise one
        found[place] = one
    return [found[place] for place in range(len(found))]


def answers(
    model: Network | Engine | Callable[[], Network | Engine],
    processor: AFNextProcessor,
    conversations: Sequence,
    params: SamplingParams | None = None,
    *,
    batch_size: int = 8,
    batch_tokens: int = BATCH_TOKENS,
    on_text: Callable[[int, str], Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[tuple[int, Answer | ValueError]]:
    """Answers to conversations, each up to its last message, as they come.

    A conversation is read when another one has been answered. A random answer is a function of ``params.seed``, the
    place of its conversation among ``conversations`` and its number among the ``params.n``, whatever else is answered.
    A conversation that cannot be answered has an error in place of its answers; the others are answered.

    Args:
        model: the model, or an engine, which keeps what it computed for the next call; or a function that returns
            either, called when the first recordings have been read.
        processor: of the model.
        conversations: each in a form that ``read_conversation`` reads, or its turns; a list of messages alone is one.
        params: how answers are generated; ``SamplingParams()`` if None.
        batch_size: conversations answered at the same time, at most.
        batch_tokens: bounds them by memory too: tokens of prompts and answers. A longer conversation is answered alone.
        on_text: called with (place, piece) as text comes; the pieces of an answer add up to its text. What it raises
            ends the answer and is raised.
        on_progress: called with (stage, conversations, done, total): "read" before the recordings of one are read;
            "prefill" with tokens of its prompt done; "decode" with tokens of the longest answer of all that grow.

    Yields:
        (place, ``Answer`` or ValueError): answers are counted conversation by conversation, ``params.n`` of each. The
        ValueError names the recording by its file, or the conversation by its number.

    Raises:
        ValueError: a number out of range; nothing that is a conversation.
    """
    for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
        if not is_whole(value) or value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    params = seeded(params or SamplingParams())
    asked = [conversations] if is_conversation(conversations) else list(conversations)
    return _Run(model, processor, params, asked, batch_size, batch_tokens, on_text, on_progress).answers()


@dataclass
class _Conversation:
    """A conversation whose recordings have been read.

    Args:
        index: its place.
        prepared: what the processor made of it.
        began, read: when reading began and ended.
        loaded: when the model was there.
    """

    index: int
    prepared: Prepared
    began: float
    read: float
    loaded: float = 0.0
    together: int = 0
    request: Request | None = None

    def needs(self, params: SamplingParams) -> int:
        """Tokens of prompt and answers."""
        return len(self.prepared.ids) + params.n * params.max_new_tokens


@dataclass
class _Run:
    """One call of ``answers``."""

    model: Any
    processor: AFNextProcessor
    params: SamplingParams
    asked: list
    batch_size: int
    batch_tokens: int
    on_text: Callable[[int, str], Any] | None
    on_progress: OnProgress | None

    def answers(self) -> Iterator[tuple[int, Answer | ValueError]]:
        todo, running = iter(range(len(self.asked))), []
        waiting: _Conversation | None = None
        engine: Engine | None = None
        try:
            while True:
                while len(running) < self.batch_size:
                    if waiting is None and (index := next(todo, None)) is not None:
                        found = self.read(index)
                        if isinstance(found, ValueError):
                            yield from ((place, found) for place in self.places(index))
                            continue
                        waiting = found
                    tokens = sum(one.needs(self.params) for one in running)
                    if waiting is None or (running and tokens + waiting.needs(self.params) > self.batch_tokens):
                        break
                    engine = self.engine(engine, waiting)
                    try:
                        self.begin(engine, waiting)
                        running.append(waiting)
                    except ValueError as error:
                        error = ValueError(f"{self.where(waiting.index)}{error}")
                        yield from ((place, error) for place in self.places(waiting.index))
                    waiting = None
                if not running:
                    return
                assert engine is not None
                with torch.inference_mode():
                    grown = engine.step()
                self.note(running, grown)
                for growing in [one for run in running if run.request is not None for one in run.request.answers]:
                    if growing.raised is not None:
                        raise growing.raised
                for one in [one for one in running if one.request is not None and one.request.done]:
                    running.remove(one)
                    yield from self.ended(engine, one)
        finally:
            for one in running:
                if engine is not None and one.request is not None:
                    engine.abort(one.request)

    def read(self, index: int) -> _Conversation | ValueError:
        began = time.perf_counter()
        try:
            turns = turns_of(self.asked, index)
            self.tell("read", [index], 0, 1)
            prepared = prepared_for(self.processor, turns, self.where(index))
        except ValueError as error:
            return error
        return _Conversation(index, prepared, began, time.perf_counter())

    def engine(self, engine: Engine | None, first: _Conversation) -> Engine:
        """The engine; another one where a conversation does not fit, which then is the only one."""
        given: Any = self.model if isinstance(self.model, (torch.nn.Module, Engine)) else self.model()
        first.loaded = time.perf_counter()
        if isinstance(given, Engine):
            given.processor = given.processor or self.processor
            return given
        wanted = -(-max(self.batch_tokens, first.needs(self.params)) // PAGE) + self.batch_size * self.params.n
        if engine is None or (engine.pool.pages < wanted and not engine.growing):
            return Engine(given, self.processor, pages=wanted, slots=self.batch_size * self.params.n)
        return engine

    def begin(self, engine: Engine, one: _Conversation) -> None:
        """A conversation is answered from now on."""
        packed = self.packed(one)
        (one.request,) = engine.add(packed, self.params, keys=[one.index])
        self.tell("prefill", [one.index], 0, len(one.prepared.ids))
        for place, growing in zip(self.places(one.index), one.request.answers, strict=True):
            if self.on_text is not None:
                growing.on_text = partial(self.on_text, place)

    def packed(self, one: _Conversation) -> Batch:
        return self.processor.pack([one.prepared], ragged=True)

    def note(self, running: list[_Conversation], grown: list[Growing]) -> None:
        """What a step has done."""
        growing, longest = [], 0
        for one in running:
            assert one.request is not None
            first = one.request.answers[0].sequence
            tokens = max(len(answer.tokens) for answer in one.request.answers)
            if tokens:
                if not one.together:
                    self.tell("prefill", [one.index], len(one.prepared.ids), len(one.prepared.ids))
                one.together = one.together or len(running)
                growing.append(one.index)
                longest = max(longest, tokens)
            elif self.on_progress is not None:
                self.tell("prefill", [one.index], first.computed, len(first.prompt.ids))
        if growing and grown:
            self.tell("decode", growing, longest, self.params.max_new_tokens)

    def ended(self, engine: Engine, one: _Conversation) -> Iterator[tuple[int, Answer | ValueError]]:
        """The answers to a conversation."""
        assert one.request is not None
        for place, growing in zip(self.places(one.index), one.request.answers, strict=True):
            if growing.error is not None:
                problem: BaseException = growing.error
                if isinstance(problem, NotFinite):
                    problem = explained(engine.model, self.packed(one), 0, growing)
                yield place, ValueError(f"{self.where(one.index)}{problem}")
                continue
            ids = growing.finish.answer
            now = time.perf_counter()
            first, last = (growing.times or [now])[0], (growing.times or [now])[-1]
            yield (
                place,
                Answer(
                    text=growing.finish.text,
                    prompt_tokens=len(one.prepared.ids),
                    answer_tokens=len(ids),
                    finish=growing.reason or "abort",
                    seconds={
                        "read": one.read - one.began,
                        "load": one.loaded - one.read,
                        "first_token": first - one.loaded,
                        "total": last - one.began,
                    },
                    together=max(1, one.together),
                    reused=growing.sequence.reused,
                ),
            )

    def places(self, index: int) -> range:
        """Of a conversation's answers."""
        return range(index * self.params.n, (index + 1) * self.params.n)

    def tell(self, stage: str, conversations: list[int], done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, conversations, done, total)

    def where(self, index: int) -> str:
        return f"conversation {index}: " if len(self.asked) > 1 else ""


def turns_of(asked: list, index: int) -> list[Turn]:
    """The turns of a conversation.

    Raises:
        ValueError: no conversation, by its number where there are several.
    """
    conversation = asked[index]
    try:
        if isinstance(conversation, Sequence) and len(conversation) and isinstance(conversation[0], Turn):
            return list(conversation)
        return read_conversation(conversation)
    except ValueError as error:
        raise ValueError(f"conversation {index}: {error}" if len(asked) > 1 else str(error)) from None


def prepared_for(processor: AFNextProcessor, turns: list[Turn], where: str) -> Prepared:
    """A conversation as the processor makes it.

    Raises:
        ValueError: with the recording's name, or ``where`` in front: audio that cannot be used, no room for an answer.
    """
    try:
        prepared, context = processor.prepare(turns), processor.max_positions
        if len(prepared.ids) == context:
            raise ValueError(f"{context} tokens leave no room for an answer in a context of {context}")
    except ValueError as error:
        sources = [audio.source for turn in turns for audio in turn.audios]
        files = [os.fspath(source) for source in sources if isinstance(source, (str, os.PathLike))]
        if files:
            where = "" if any(file in str(error) for file in files) else f"{', '.join(files)}: "
        raise ValueError(f"{where}{error}") from None
    return prepared
