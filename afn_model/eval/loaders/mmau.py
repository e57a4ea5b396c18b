"""MMAU: questions about sound, music and speech, as the authors' JSON list (Sakshi113/MMAU@110127f) and as the Parquet
files of their hub, which hold the recordings of v05.15.25."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, answer_of, choices_of, field, listed, read_rows

_LETTER = re.compile(r"\([A-Z]\)\s*")
GROUPS = ("task", "category", "sub-category", "difficulty")


def mmau(files: Files) -> Iterator[Item]:
    """Rows {id, audio_id, question, choices, answer, task, category, sub-category, difficulty}; the hub has them as
    {context, instruction, choices, answer, other_attributes}, with letters before choices and answer. The answers of
    the test split are hidden, and a copy on the hub has its choices as a string."""
    for path in files.all("questions"):
        for number, row in enumerate(read_rows(path, ["context"]), 1):
            where = f"{path}, question {number}"
            if path.suffix == ".parquet":
                row = _from_hub(row, where)
                audio = row["audio"]
            else:
                audio = files.audio(field(row, "audio_id", where), str(path.parent), "audio")
            choices = choices_of(field(row, "choices", where, (list, str)))
            yield Item(
                id=str(field(row, "id", where, (str, int))),
                question=field(row, "question", where),
                clips=(ItemClip(audio),),
                choices=choices,
                answer=answer_of(row.get("answer"), choices),
                groups={name: str(row[name]) for name in GROUPS if row.get(name)},
            )


def _from_hub(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row with the names of the authors' list."""
    about = field(row, "other_attributes", where, (str, dict))
    try:
        about = json.loads(about) if isinstance(about, str) else about
    except ValueError:
        raise ValueError(f"{where}: field 'other_attributes' is no JSON") from None
    choices = [str(one) for one in listed(field(row, "choices", where, (list, str)))]
    answer = row.get("answer")
    if all(_LETTER.match(one) for one in choices):
        choices = [_LETTER.sub("", one, count=1) for one in choices]
        answer = _LETTER.sub("", answer, count=1) if isinstance(answer, str) else answer
    found = {"question": field(row, "instruction", where), "choices": choices, "answer": answer}
    return about | found | {"audio": row["context"]}
