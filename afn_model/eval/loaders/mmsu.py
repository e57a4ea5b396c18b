"""MMSU: 47 tasks of spoken language (dingdongwang/MMSU_Bench@f0ef334), as JSON Lines and as the hub's Parquet files."""

from __future__ import annotations

from collections.abc import Iterator

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, answer_of, choices_of, field, read_rows

GROUPS = {"task": "task_name", "category": "category", "sub-category": "sub-category"}
_TEXT = (str, int, float, type(None))


def mmsu(files: Files) -> Iterator[Item]:
    """Rows {id, audio_path, task_name, question, choice_a ... choice_d, answer_gt, category, sub-category,
    sub-sub-category, linguistics_sub_discipline}. Some questions have two choices, the others being null at any
    places; a choice or an answer may be a number, and the word "None" is a choice."""
    for path in files.all("questions"):
        for number, row in enumerate(read_rows(path, ["audio"]), 1):
            where = f"{path}, question {number}"
            given = [field(row, name, where, _TEXT) for name in ("choice_a", "choice_b")]
            choices = choices_of([*given, row.get("choice_c"), row.get("choice_d")])
            if path.suffix == ".parquet":
                audio = row["audio"]
            else:
                audio = files.audio(field(row, "audio_path", where), str(path.parent), str(path.parent.parent), "audio")
            answer = row.get("answer_gt")
            about = ("sub-sub-category", "linguistics_sub_discipline")
            yield Item(
                id=str(field(row, "id", where, (str, int))),
                question=field(row, "question", where),
                clips=(ItemClip(audio),),
                choices=choices,
                answer=answer_of(None if answer is None else str(answer), choices),
                groups={name: str(row[column]) for name, column in GROUPS.items() if row.get(column)},
                extra={name: row[name] for name in about if row.get(name)},
            )
