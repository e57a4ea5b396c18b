"""What stands in for models in tests of evaluation: workers that answer from a table, and items without files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.running.asks import Ask, AskSettings, asks_of
from afn_model.eval.table import BenchmarkRow

ROW = BenchmarkRow("made-up", "Made up", "", "choose", (), "accuracy %", version="v1")
ASKING = AskSettings({"name": "scripted", "weights": "0" * 8})


class ScriptedWorkers:
    """Workers of a batch whose answers are a function of the line.

    Args:
        say: the fields of a line -> its answer; a ValueError is a line with an error.
        count: of workers.
    """

    def __init__(self, say: Callable[[dict[str, Any]], str], count: int = 1):
        self.say, self.count = say, count
        self.given: list[list[tuple[int, bytes]]] = [[] for _ in range(count)]
        self.asked: list[str] = []

    def send(self, index: int, lines: Any) -> None:
        self.given[index] += lines

    def receive(self) -> tuple[int, list[tuple[int, dict[str, Any]]]]:
        index = max(range(self.count), key=lambda index: len(self.given[index]))
        number, raw = self.given[index].pop()
        fields = json.loads(raw)
        self.asked.append(fields["id"])
        try:
            row = {"id": fields["id"], "answer": self.say(fields), "finish": "stop", "tokens": 1}
        except ValueError as error:
            row = {"id": fields["id"], "error": {"code": "scripted", "message": str(error), "line": number}}
        return index, [(number, row)]

    def close(self) -> None:
        self.count = 0


def text(fields: dict[str, Any]) -> str:
    """The text that a line asks."""
    return "".join(part["text"] for part in fields["messages"][-1]["content"] if part["type"] == "text")


def echo(fields: dict[str, Any]) -> str:
    """An answer that tells which question it is for."""
    return f"the answer to {fields['id']}, {hashlib.sha256(text(fields).encode()).hexdigest()}"


def items(count: int, *, path: str = "{}.wav", shared: int = 2) -> list[Item]:
    """Questions, ``shared`` of them about each recording."""
    return [
        Item(f"i{n}", f"Question {n}?", (ItemClip(path.format(n // shared)),), ("dog", "cat"), "dog")
        for n in range(count)
    ]


def asks(made: list[Item], asking: AskSettings = ASKING, row: BenchmarkRow = ROW) -> list[Ask]:
    """Their lines; a recording's digest is its file's name."""
    return list(asks_of(row, made, asking, lambda path: Path(path).name))
