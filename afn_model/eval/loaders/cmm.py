"""CMM: whether something that is not there is heard (DAMO-NLP-SG/CMM@6a59258)."""

from __future__ import annotations

from collections.abc import Iterator

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, field, read_rows

GROUPS = ("sub_category", "granularity", "correlation_type")


def cmm(files: Files) -> Iterator[Item]:
    """Rows {category, sub_category, modality, granularity, correlation_type, video_path, audio_path, question, answer}
    as a list or as lines. Two questions in three are about a video: those that have a recording and ask what was heard
    are items, whose ids are the numbers of their rows."""
    path = files.one("questions")
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}, row {number}"
        question, audio = field(row, "question", where), field(row, "audio_path", where, (str, type(None)))
        if not audio or "hear" not in question.lower().split():
            continue
        answer = field(row, "answer", where).strip().lower().rstrip(".")
        if answer not in ("yes", "no"):
            raise ValueError(f"{where}: field 'answer' is yes or no, got {answer!r}")
        groups = {name.replace("_", "-"): str(row[name]) for name in GROUPS if row.get(name)}
        yield Item(
            id=str(number),
            question=question,
            clips=(ItemClip(files.audio(audio, str(path.parent))),),
            answer=answer,
            groups=groups,
            extra={"category": row.get("category"), "modality": row.get("modality")},
        )
