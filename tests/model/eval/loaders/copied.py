"""Copies of benchmarks' files, as they are and changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from afn_model.eval.copies import writer
from afn_model.eval.copies.sounds import Sounds
from afn_model.eval.items import Item
from afn_model.eval.loaders import load
from afn_model.eval.table import BenchmarkRow, benchmarks


def copied(name: str, data: Path) -> tuple[BenchmarkRow, Path]:
    """A row of the table and the folder of its copy."""
    row = benchmarks()[name]
    folder = data / name
    folder.mkdir()
    writer(row)(folder, Sounds(0), **row.options)
    return row, folder


def loaded(name: str, data: Path) -> list[Item]:
    row, _ = copied(name, data)
    return load(row, data)


def changed(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes what a JSON file holds in place, or replaces it by what ``change`` returns."""
    rows = json.loads(path.read_text("utf-8"))
    new = change(rows)
    path.write_text(json.dumps(rows if new is None else new), "utf-8")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
