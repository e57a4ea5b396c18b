"""MMAU: a JSON list of questions about sound, music and speech (Sakshi113/MMAU@110127f)."""

from __future__ import annotations

from collections.abc import Iterator

from afn_model.checks import shown
from afn_model.eval.items import Clip, Item
from afn_model.eval.loaders.files import Files, answer_of, choices_of, field, read_json


def mmau(files: Files) -> Iterator[Item]:
    """Rows {id, audio_id, question, choices, answer, task, category, sub-category, difficulty}; the answers of the test
    split are hidden, and the copy on the hub has its choices as a string."""
    path = files.one("questions")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list of questions is expected, got {shown(rows)}")
    for number, row in enumerate(rows, 1):
        where = f"{path}, question {number}"
        choices = choices_of(field(row, "choices", where, (list, str)))
        groups = {name: str(row[name]) for name in ("task", "category", "sub-category", "difficulty") if row.get(name)}
        yield Item(
            id=str(field(row, "id", where, (str, int))),
            question=field(row, "question", where),
            clips=(Clip(files.audio(field(row, "audio_id", where), "audio")),),
            choices=choices,
            answer=answer_of(row.get("answer"), choices),
            groups=groups,
        )
