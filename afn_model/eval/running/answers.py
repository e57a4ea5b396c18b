"""The answers of a run: append-only lines in ``answers/*.jsonl``, one file for each process that answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from afn_model.eval.items import AnsweredItem
from afn_model.eval.running.asks import Ask

FOLDER = "answers"


def read_answers(out: str | Path) -> dict[str, dict[str, Any]]:
    """The line of each key: the last one of the last file by name, but an error never takes the place of an
    answer. A torn last line, and whatever else is no line of a batch, is left out."""
    found: dict[str, dict[str, Any]] = {}
    for row in _lines(Path(out) / FOLDER):
        if row.get("error") and "answer" in found.get(row["id"], {}):
            continue
        found[row["id"]] = row
    return found


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and isinstance(row.get("id"), str) and ("answer" in row or "error" in row):
                    yield row


def answered(asks: Sequence[Ask], rows: dict[str, dict[str, Any]]) -> list[AnsweredItem]:
    """Items with their answers, in order."""
    found = []
    for ask in asks:
        row = rows.get(ask.key, {})
        error = (row.get("error") or {}).get("message", "") or ask.problem
        found.append(AnsweredItem(ask.item, None if error else row.get("answer"), error, row.get("finish") or ""))
    return found
