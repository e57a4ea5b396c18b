"""A model's answers to the records of a corpus that training never held."""

from __future__ import annotations

from collections.abc import Sequence
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
    batch_size: int = 32,
) -> list[str]:
    """The greedy answer to each record's last question; earlier turns are given.

    Args:
        model, processor: of one model folder.
        records: of a corpus.
        folder: that the records' paths are relative to.
        max_new_tokens: longest answer.
        batch_size: records answered together, of like length.
    """
    conversations = [question(sample(record, folder).turns) for record in records]
    params = SamplingParams(max_new_tokens=max_new_tokens)
    answers = answer_conversations(model, processor, conversations, params, batch_size=batch_size)
    return [answered.text for answered in answers]
