"""MMAU-Pro: ``test.parquet`` with the recordings beside it (sonalkum/MMAUPro@960e93a)."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, answer_of, choices_of, field, listed, read_parquet

EXTRA = ("category", "task_identifier", "task_classification", "transcription")
SKILLS = ("perceptual_skills", "reasoning_skills")


def mmau_pro(files: Files) -> Iterator[Item]:
    """Rows {id, audio_path (a list), question, answer, choices, length_type, perceptual_skills, reasoning_skills,
    category, transcription, task_classification, task_identifier, kwargs, sub-cat}.

    Questions of the category "open" have no choices; those of "instruction following" have neither choices nor an
    answer: ``extra["task_identifier"]`` and ``extra["kwargs"]`` say what their answers must be like.

    Raises:
        ValueError: the recordings are in data.zip still.
    """
    path = files.one("questions")
    for number, row in enumerate(read_parquet(path), 1):
        where = f"{path}, row {number}"
        choices = choices_of(field(row, "choices", where, (list, str, type(None))))
        given = [str(one) for one in listed(field(row, "audio_path", where, (list, str)))]
        clips = tuple(ItemClip(files.audio(one, str(path.parent), "data")) for one in given)
        if number == 1:
            _check_unpacked(path.parent, clips)
        groups = {"category": row.get("category"), "length": row.get("length_type"), "sub-category": row.get("sub-cat")}
        extra = {name: row.get(name) for name in EXTRA} | {"kwargs": _arguments(row.get("kwargs"), where)}
        yield Item(
            id=str(field(row, "id", where, (str, int))),
            question=field(row, "question", where),
            clips=clips,
            choices=choices,
            answer=answer_of(row.get("answer"), choices),
            groups={name: str(value) for name, value in groups.items() if value}
            | {"recordings": "several" if len(clips) > 1 else "one"},
            extra={name: value for name, value in extra.items() if value}
            | {name: listed(row[name]) for name in SKILLS if row.get(name)},
        )


def _check_unpacked(folder: Path, clips: tuple[ItemClip, ...]) -> None:
    packed = folder / "data.zip"
    if packed.is_file() and clips and not any(Path(clip.path).is_file() for clip in clips):
        raise ValueError(f"{packed}: the recordings are in it still; unpack it where it is (unzip data.zip)")


def _arguments(value: Any, where: str) -> dict[str, Any]:
    """What an instruction is about: a struct, whose other fields are null, or a text of one."""
    if isinstance(value, str) and value.strip():
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError):
                continue
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: field 'kwargs' is not what the benchmark publishes: {value!r:.80}")
    return {name: one for name, one in value.items() if one is not None}
