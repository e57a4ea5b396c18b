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
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.text_stream import TextStream
from afn_model.prompt.conversation import Turn, is_conversation, read_conversation

if TYPE_CHECKING:
    from afn_model.infer.rollout import Rollout
    from afn_model.network.network import Network
    from afn_model.prompt.batch import Batch, Prepared
    from afn_model.prompt.processor import AFNextProcessor


@dataclass(frozen=True)
class Answer:
    """What the model said, and how long that took.

    Args:
        text: the answer.
        prompt_tokens, answer_tokens: how many; the stop token is not counted.
        seconds: of the batch that the answer was part of: "load", spent on reading weights; "first_token", from having
            recordings and weights to the first token; "total".
    """

    text: str
    prompt_tokens: int
    answer_tokens: int
    seconds: dict[str, float]


def answer(
    model: Network | Callable[[], Network],
    processor: AFNextProcessor,
    conversations: Sequence,
    params: SamplingParams | None = None,
    *,
    batch_size: int = 8,
    in_order: bool = False,
    on_text: Callable[[int, str], Any] | None = None,
    on_answer: Callable[[int, Answer], Any] | None = None,
) -> list[Answer]:
    """Answers conversations, each up to its last message.

    Conversations of like length are answered together. A random answer is a function of ``params.seed``, the place of
    its conversation among ``conversations`` and its number among the ``params.n``, whatever the batches.

    Args:
        model: the model, or a function that returns it, called when the first recordings have been read.
        processor: of the model.
        conversations: each in a form that ``read_conversation`` reads, or its turns; a list of messages alone is one.
        params: how answers are generated; ``SamplingParams()`` if None.
        batch_size: conversations answered together.
        in_order: make batches in the given order rather than by length, so that the first answers come first.
        on_text: called with (answer, piece) as text comes; the pieces of an answer add up to its text.
        on_answer: called with (answer, ``Answer``) when its batch is done.

    Returns:
        ``params.n`` answers to each conversation, in the order of the conversations whatever that of the batches.
        ``on_text`` and ``on_answer`` count answers by their place in this list.

    Raises:
        ValueError: a recording that cannot be used or a malformed conversation, by file name or number; a prompt that
            leaves no room in the context.
    """
    if not is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    params = params or SamplingParams()
    if params.temperature > 0 and params.seed is None:
        params = replace(params, seed=int(torch.randint(2**62, ())))
    asked = [conversations] if is_conversation(conversations) else list(conversations)
    turns = [_read(asked, index) for index in range(len(asked))]
    answers: dict[int, Answer] = {}
    for chosen in _batches(turns, batch_size, in_order):
        began = time.perf_counter()
        batch = processor.pack([_prepare(processor, turns, index) for index in chosen])
        loading = time.perf_counter()
        network: Any = model if isinstance(model, nn.Module) else model()
        start = time.perf_counter()
        places = [index * params.n + s for index in chosen for s in range(params.n)]
        streams = {} if on_text is None else {p: TextStream(processor.decode, partial(on_text, p)) for p in places}
        rollouts, first = _decode(network, batch, params, chosen, [streams.get(place) for place in places])
        end = time.perf_counter()
        seconds = {"load": start - loading, "first_token": (first or end) - start, "total": end - began}
        lengths = batch.cu_seqlens.diff().tolist()
        for place, rollout in zip(places, rollouts, strict=True):
            ids = rollout.answer
            answers[place] = Answer(processor.decode(ids), lengths[rollout.prompt], len(ids), seconds)
        if on_answer is not None:
            for place in places:
                on_answer(place, answers[place])
    return [answers[place] for place in range(len(answers))]


def _decode(
    model: Network, batch: Batch, params: SamplingParams, keys: list[int], streams: list[TextStream | None]
) -> tuple[list[Rollout], float | None]:
    """The answers to a batch, streamed as they are decoded, and the time of the first token."""
    first = None

    def on_token(row: int, token: int) -> None:
        nonlocal first
        first = first or time.perf_counter()
        stream = streams[row]
        if stream is not None:
            stream(token)

    with torch.inference_mode():
        rollouts = decode(model, batch, params, keys=keys, on_token=on_token)
    for stream in filter(None, streams):
        stream.close()
    return rollouts, first


def _read(conversations: list, index: int) -> list[Turn]:
    conversation = conversations[index]
    try:
        if isinstance(conversation, Sequence) and len(conversation) and isinstance(conversation[0], Turn):
            return list(conversation)
        return read_conversation(conversation)
    except ValueError as error:
        raise ValueError(f"conversation {index}: {error}" if len(conversations) > 1 else str(error)) from None


def _prepare(processor: AFNextProcessor, turns: list[list[Turn]], index: int) -> Prepared:
    try:
        prepared, context = processor.prepare(turns[index]), processor.max_positions
        if len(prepared.ids) == context:
            raise ValueError(f"{context} tokens leave no room for an answer in a context of {context}")
    except ValueError as error:
        sources = [audio.source for turn in turns[index] for audio in turn.audios]
        files = [os.fspath(source) for source in sources if isinstance(source, (str, os.PathLike))]
        where = ", ".join(files) or (f"conversation {index}" if len(turns) > 1 else "")
        if not where or any(file in str(error) for file in files):
            raise
        raise ValueError(f"{where}: {error}") from None
    return prepared


def _batches(turns: list[list[Turn]], batch_size: int, in_order: bool) -> Iterator[list[int]]:
    order = list(range(len(turns)))
    if len(turns) > batch_size and not in_order:
        order.sort(key=lambda index: sum(map(_seconds, (audio for turn in turns[index] for audio in turn.audios))))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


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
