"""Conversations in, texts out: shared by command line, evaluation and demo."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.recording import Audio, measured_seconds
from afn_model.checks import is_whole
from afn_model.infer.decoder import decode
from afn_model.infer.finite import NotFiniteError
from afn_model.infer.history import History
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.text_stream import TextStream
from afn_model.prompt.conversation import Turn, is_conversation, read_conversation

if TYPE_CHECKING:
    from afn_model.infer.rollout import Rollout
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch, Prepared
    from afn_model.prompt.processor import AFNextProcessor

# As many as a recording of half an hour has, the longest that the released models take: what has room for one of
# those has room for any batch.
BATCH_TOKENS = 46_080
OnProgress = Callable[[str, "list[int]", int, int], Any]


@dataclass(frozen=True)
class Answer:
    """What the model said, and how long that took.

    Args:
        text: the answer.
        prompt_tokens, answer_tokens: how many; the stop token is not counted.
        finish: "stop" where the model ended the answer, "length" where ``max_new_tokens`` or the context did.
        seconds: "read", spent on this conversation's recordings; "load", on reading weights for its batch;
            "first_token", from then to the batch's first token; "total", from the start of reading to the last token of
            this answer, without what was spent on reading other recordings.
        together: conversations that were answered together with this one, which is counted.
    """

    text: str
    prompt_tokens: int
    answer_tokens: int
    finish: str
    seconds: dict[str, float]
    together: int


def answer(
    model: Network | Callable[[], Network],
    processor: AFNextProcessor,
    conversations: Sequence,
    params: SamplingParams | None = None,
    **options: Any,
) -> list[Answer]:
    """Answers conversations, each up to its last message.

    Args:
        model, processor, conversations, params, options: as of ``answers``.

    Returns:
        ``params.n`` answers to each conversation, in the order of the conversations whatever that of the batches.

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
    model: Network | Callable[[], Network],
    processor: AFNextProcessor,
    conversations: Sequence,
    params: SamplingParams | None = None,
    *,
    batch_size: int = 8,
    batch_tokens: int = BATCH_TOKENS,
    in_order: bool = False,
    history: History | None = None,
    on_text: Callable[[int, str], Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[tuple[int, Answer | ValueError]]:
    """Answers to conversations, each up to its last message, as they come.

    Conversations of like length are answered together. A random answer is a function of ``params.seed``, the place of
    its conversation among ``conversations`` and its number among the ``params.n``, whatever the batches. A conversation
    that cannot be answered has an error in place of its answers; the others are answered.

    Args:
        model: the model, or a function that returns it, called when the first recordings have been read.
        processor: of the model.
        conversations: each in a form that ``read_conversation`` reads, or its turns; a list of messages alone is one.
        params: how answers are generated; ``SamplingParams()`` if None.
        batch_size: conversations answered together, at most.
        batch_tokens: bounds a batch by memory: the tokens of its longest prompt times its answers, which is what their
            keys and values are stored in. A longer conversation is answered alone.
        in_order: make batches in the given order rather than by length, so that the first answers come first.
        history: of the only conversation; what an earlier call computed of it is not computed again.
        on_text: called with (place, piece) as text comes; the pieces of an answer add up to its text.
        on_progress: called with (stage, conversations, done, total): "read" before the recordings of one are read;
            "prefill" with layers of the model done for a batch; "decode" with tokens of its longest answer.

    Yields:
        (place, ``Answer`` or ValueError): answers are counted conversation by conversation, ``params.n`` of each, and
        come batch by batch. The ValueError names the recording by its file, or the conversation by its number.

    Raises:
        ValueError: a number out of range; nothing that is a conversation; a model whose scores are not finite.
    """
    for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
        if not is_whole(value) or value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    params = params or SamplingParams()
    if params.temperature > 0 and params.seed is None:
        params = replace(params, seed=int(torch.randint(2**62, ())))
    asked = [conversations] if is_conversation(conversations) else list(conversations)
    if history is not None and len(asked) * params.n != 1:
        raise ValueError(f"a history is that of one answer, not of {len(asked) * params.n}")
    run = _Run(model, processor, params, asked, history, on_text, on_progress)
    return run.answers(batch_size, batch_tokens, in_order)


@dataclass
class _Waiting:
    """A conversation whose recordings have been read, and how long that took."""

    index: int
    prepared: Prepared
    seconds: float


@dataclass
class _Run:
    """One call of ``answers``."""

    model: Network | Callable[[], Network]
    processor: AFNextProcessor
    params: SamplingParams
    asked: list
    history: History | None
    on_text: Callable[[int, str], Any] | None
    on_progress: OnProgress | None

    def answers(self, batch_size: int, batch_tokens: int, in_order: bool) -> Iterator[tuple[int, Answer | ValueError]]:
        turns: dict[int, list[Turn]] = {}
        for index in range(len(self.asked)):
            try:
                turns[index] = _read(self.asked, index)
            except ValueError as error:
                yield from ((place, error) for place in self.places(index))
        order = list(turns)
        if len(turns) > batch_size and not in_order:
            order.sort(key=lambda index: sum(map(_seconds, (audio for turn in turns[index] for audio in turn.audios))))
        batch: list[_Waiting] = []
        for index in order:
            began = time.perf_counter()
            self.tell("read", [index], 0, 1)
            try:
                prepared = _prepare(self.processor, turns[index], _where(self.asked, index))
            except ValueError as error:
                yield from ((place, error) for place in self.places(index))
                continue
            longest = max(len(one.prepared.ids) for one in [*batch, _Waiting(index, prepared, 0.0)])
            if batch and (len(batch) + 1) * self.params.n * longest > batch_tokens:
                yield from self.decoded(batch)
                batch = []
            batch.append(_Waiting(index, prepared, time.perf_counter() - began))
            if len(batch) == batch_size:
                yield from self.decoded(batch)
                batch = []
        if batch:
            yield from self.decoded(batch)

    def places(self, index: int) -> range:
        """Of a conversation's answers."""
        return range(index * self.params.n, (index + 1) * self.params.n)

    def tell(self, stage: str, conversations: list[int], done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, conversations, done, total)

    def decoded(self, batch: list[_Waiting]) -> Iterator[tuple[int, Answer | ValueError]]:
        """The answers to a batch."""
        began, chosen = time.perf_counter(), [one.index for one in batch]
        packed = self.processor.pack([one.prepared for one in batch])
        loading = time.perf_counter()
        network: Any = self.model if isinstance(self.model, nn.Module) else self.model()
        start = time.perf_counter()
        places = [place for index in chosen for place in self.places(index)]
        streams = [
            None if self.on_text is None else TextStream(self.processor.decode, partial(self.on_text, place))
            for place in places
        ]
        rollouts, first, ends = self.decode(network, packed, chosen, streams)
        for row, (place, rollout) in enumerate(zip(places, rollouts, strict=True)):
            one, ids = batch[rollout.prompt], rollout.answer
            yield (
                place,
                Answer(
                    text=self.processor.decode(ids),
                    prompt_tokens=len(one.prepared.ids),
                    answer_tokens=len(ids),
                    finish="stop" if rollout.finished else "length",
                    seconds={
                        "read": one.seconds,
                        "load": start - loading,
                        "first_token": first - start,
                        "total": one.seconds + ends[row] - began,
                    },
                    together=len(batch),
                ),
            )

    def decode(
        self, network: Network, batch: Batch, chosen: list[int], streams: list[TextStream | None]
    ) -> tuple[list[Rollout], float, list[float]]:
        """The answers to a batch, streamed as they are decoded; when its first token came, and the last of each."""
        counts, times = [0] * len(streams), [0.0] * len(streams)
        longest, first, hooks = 0, 0.0, self.watch_prefill(network, batch, chosen)

        def on_token(row: int, token: int) -> None:
            nonlocal first, longest
            times[row] = time.perf_counter()
            first = first or times[row]
            while hooks:
                hooks.pop().remove()
            counts[row] += 1
            if counts[row] > longest:
                longest = counts[row]
                self.tell("decode", chosen, longest, self.params.max_new_tokens)
            stream = streams[row]
            if stream is not None:
                stream(token)

        options: dict[str, Any] = {"keys": chosen, "history": self.history, "on_token": on_token}
        try:
            with torch.inference_mode():
                rollouts = decode(network, batch, self.params, **options)
        except NotFiniteError as error:
            raise ValueError(f"{_where(self.asked, chosen[error.prompt])}{error}") from None
        finally:
            for hook in hooks:
                hook.remove()
        end = time.perf_counter()
        for stream in filter(None, streams):
            stream.close()
        return rollouts, first or end, [last or end for last in times]

    def watch_prefill(self, network: Network, batch: Batch, chosen: list[int]) -> list[Any]:
        """Tells of every layer that is done; the hooks to remove when all are."""
        if self.on_progress is None:
            return []
        layers = [*(network.encoder.layers if batch.pcm is not None else []), *network.language_model.layers]
        done = iter(range(1, len(layers) + 1))
        self.tell("prefill", chosen, 0, len(layers))
        return [
            layer.register_forward_hook(lambda *_: self.tell("prefill", chosen, next(done, len(layers)), len(layers)))
            for layer in layers
        ]


def _where(asked: list, index: int) -> str:
    return f"conversation {index}: " if len(asked) > 1 else ""


def _read(asked: list, index: int) -> list[Turn]:
    conversation = asked[index]
    try:
        if isinstance(conversation, Sequence) and len(conversation) and isinstance(conversation[0], Turn):
            return list(conversation)
        return read_conversation(conversation)
    except ValueError as error:
        raise ValueError(f"{_where(asked, index)}{error}") from None


def _prepare(processor: AFNextProcessor, turns: list[Turn], where: str) -> Prepared:
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


def _seconds(audio: Audio) -> float:
    """Seconds of a recording by its header; an unreadable one counts as 0 s: the error is raised when it is decoded."""
    if isinstance(audio.source, (str, os.PathLike)):
        try:
            return measured_seconds(replace(audio, source=os.fspath(audio.source)))
        except ValueError:
            return 0.0
    samples = len(audio.source) if isinstance(audio.source, (np.ndarray, Tensor)) else 0
    end = samples / (SAMPLE_RATE if audio.sampling_rate is None else audio.sampling_rate)
    return min(end, math.inf if audio.end is None else audio.end) - (audio.start or 0.0)
