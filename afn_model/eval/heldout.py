"""A model's answers to the records of a corpus that training never held."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from afn_model.afnext import AFNext
from afn_model.data.plan import question
from afn_model.data.records import sample
from afn_model.infer.answer import answer as answer_conversations
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.processor import AFNextProcessor


def answer(
    model: AFNext,
    processor: AFNextProcessor,
    records: Sequence[dict],
    folder: Path,
    *,
    max_new_tokens: int = 96,
    together: int = 32,
    on_step: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The greedy answer to each record's last question; earlier turns are given.

    Args:
        model, processor: of one model folder.
        records: of a corpus.
        folder: that the records' paths are relative to.
        max_new_tokens: longest answer.
        together: records answered in a batch, of like length.
        on_step: called with the number of records answered.
    """
    conversations = [question(sample(record, folder).turns) for record in records]
    done = itertools.count(1)
    answers = answer_conversations(
        model,
        processor,
        conversations,
        SamplingParams(max_new_tokens=max_new_tokens),
        batch_size=together,
        on_answer=lambda place, answered: on_step(next(done)),
    )
    return [answered.text for answered in answers]
