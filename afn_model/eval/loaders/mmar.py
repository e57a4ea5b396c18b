"""MMAR: questions that need several steps, about sound, music, speech and mixes of them (ddlBoJack/MMAR@3bce090)."""

from __future__ import annotations

from collections.abc import Iterator

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, answer_of, choices_of, field, read_rows

GROUPS = ("modality", "category", "sub-category", "language")
EXTRA = ("thinking", "cue", "rubric", "url", "timestamp")


def mmar(files: Files) -> Iterator[Item]:
    """Rows {id, audio_path, question, choices, answer, modality, category, sub-category, language, thinking, cue,
    rubric, url, timestamp}. Items have two to six choices; four of them have an empty last one, which is left out."""
    path = files.one("questions")
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}, question {number}"
        choices = choices_of(field(row, "choices", where, (list, str)))
        audio = files.audio(field(row, "audio_path", where), str(path.parent), "audio")
        yield Item(
            id=str(field(row, "id", where, (str, int))),
            question=field(row, "question", where),
            clips=(ItemClip(audio),),
            choices=choices,
            answer=answer_of(row.get("answer"), choices),
            groups={name: str(row[name]) for name in GROUPS if row.get(name)},
            extra={name: row[name] for name in EXTRA if row.get(name)},
        )
