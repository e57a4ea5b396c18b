"""The answers of a run: append-only lines in ``answers/*.jsonl``, one file for each process that answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afn_model.eval.items import AnsweredItem
from afn_model.eval.running.asks import Ask
from afn_model.files import appended_rows

FOLDER = "answers"


def read_answers(out: str | Path) -> dict[str, dict[str, Any]]:
    """The line of each key: the last one of the last file by name, but an error never takes the place of an
    answer. A torn last line, and whatever else is no line of a batch, is left out."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((Path(out) / FOLDER).glob("*.jsonl")):
        for row in appended_rows(path):
            if not (isinstance(row, dict) and isinstance(row.get("id"), str) and ("answer" in row or "error" in row)):
                continue
            if not row.get("error") or "answer" not in found.get(row["id"], {}):
                found[row["id"]] = row
    return found


def answered(asks: Sequence[Ask], rows: dict[str, dict[str, Any]]) -> list[AnsweredItem]:
    """Items with their answers, in order."""
    found = []
    for ask in asks:
        row = rows.get(ask.key, {})
        error = (row.get("error") or {}).get("message", "") or ask.problem
        found.append(AnsweredItem(ask.item, None if error else row.get("answer"), error, row.get("finish") or ""))
    return found
