"""A model's answers to the records of a corpus that training never held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from afn_model.afnext import AFNext
from afn_model.data.plan import question
from afn_model.data.records import parse_sample
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
    found = [parse_sample(record, folder) for record in records]
    answers = [""] * len(found)
    order = sorted(range(len(found)), key=lambda i: found[i].seconds)
    for first in range(0, len(order), together):
        rows = order[first : first + together]
        batch = processor.pack([processor.prepare(question(found[i].turns), add_generation_prompt=True) for i in rows])
        for i, tokens in zip(rows, model.generate(batch, max_new_tokens), strict=True):
            answers[i] = processor.decode(tokens)
        on_step(first + len(rows))
    return answers
