"""Texts of the speech decoder about conversations, in the form in which the whole model answers them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from afn_model.infer.answer import Answer, OnProgress, prepared_for, turns_of
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.speech_writer import SpeechWriter
from afn_model.network.speech_network import SpeechNetwork
from afn_model.prompt.batch import Prepared
from afn_model.prompt.conversation import is_conversation
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.speech_task import with_task


def speech_answers(
    model: SpeechNetwork | Callable[[], SpeechNetwork],
    processor: AFNextProcessor,
    conversations: Sequence,
    params: SamplingParams | None = None,
    *,
    batch_size: int = 8,
    batch_tokens: int | None = None,
    on_text: Callable[[int, str], Any] | None = None,
    on_progress: OnProgress | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> Iterator[tuple[int, Answer | ValueError]]:
    """Texts for conversations of one question each, as ``infer.answer.answers`` yields them; the likeliest ones.

    Conversations whose prompts have equally many tokens of text are answered together. What is heard does not depend on
    what is asked beside.

    Args:
        model: the encoder with its decoder, or a function that returns it.
        processor: of the model.
        conversations: each in a form that ``read_conversation`` reads, or its turns; recordings without a question are
            transcribed as English where the tokenizer has the tokens of tasks.
        params: ``max_new_tokens`` counts; a temperature above 0 is refused.
        batch_size: conversations together, at most.
        batch_tokens: of no use here: a text and its audio are bounded.
        on_text: called with (place, text) when a text is there.
        on_progress: called with ("read", [place], 0, 1) before the recordings of a conversation are read.
        beams, length_penalty: as of ``speech_decode.decode``.

    Raises:
        ValueError: a temperature, or several answers.
    """
    params = params or SamplingParams()
    if params.temperature or params.n != 1:
        raise ValueError("the speech decoder writes down what is likeliest: temperature 0 and one answer")
    waiting: dict[int, list[tuple[int, Prepared, float]]] = {}
    options = {"beams": beams, "length_penalty": length_penalty, "most": params.max_new_tokens}
    asked = [conversations] if is_conversation(conversations) else list(conversations)
    for index in range(len(asked)):
        began = time.perf_counter()
        try:
            where = f"conversation {index}: " if len(asked) > 1 else ""
            if on_progress is not None:
                on_progress("read", [index], 0, 1)
            turns = with_task(turns_of(asked, index), processor.tokenizer)
            prepared = prepared_for(processor, turns, where)
            if not prepared.clips:
                raise ValueError(f"{where}no recording to write down")
        except ValueError as error:
            yield index, error
            continue
        text = int((prepared.ids != processor.sound_id).sum())
        group = waiting.setdefault(text, [])
        group.append((index, prepared, began))
        if len(group) == batch_size:
            yield from _together(model, processor, waiting.pop(text), options, on_text)
    for group in waiting.values():
        yield from _together(model, processor, group, options, on_text)


def _together(
    model: SpeechNetwork | Callable[[], SpeechNetwork],
    processor: AFNextProcessor,
    group: list[tuple[int, Prepared, float]],
    options: dict[str, Any],
    on_text: Callable[[int, str], Any] | None,
) -> Iterator[tuple[int, Answer | ValueError]]:
    read = time.perf_counter()
    network = model if isinstance(model, SpeechNetwork) else model()
    loaded = time.perf_counter()
    try:
        *_, found = SpeechWriter(network, processor, **options).decoded([one for _, one, _ in group])
    except ValueError as error:
        yield from ((index, error) for index, _, _ in group)
        return
    for (index, prepared, began), one in zip(group, found, strict=True):
        now, text = time.perf_counter(), processor.decode(one.tokens).strip()
        if on_text is not None:
            on_text(index, text)
        seconds = {"read": read - began, "load": loaded - read, "first_token": now - loaded, "total": now - began}
        yield (
            index,
            Answer(
                text=text,
                prompt_tokens=len(prepared.ids),
                answer_tokens=len(one.tokens),
                finish="stop" if one.ended else "length",
                seconds=seconds,
                together=len(group),
            ),
        )
