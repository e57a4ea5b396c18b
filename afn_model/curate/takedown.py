"""What must go: rows and recordings in OUT/takedown.txt, which no stage gets any more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afn_model.files import write_text

TAKEDOWN = "takedown.txt"
KINDS = ("row", "source")


@dataclass(frozen=True)
class Takedown:
    """Ids that were taken down, each with what was asked for.

    Args:
        rows: of rows.
        sources: of the bytes of recordings: what else has these bytes, or comes with them later, goes too.
    """

    rows: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def has(self, line: Mapping[str, Any]) -> bool:
        """Whether an outcome is of what was taken down."""
        return line["id"] in self.rows or line.get("fields", {}).get("source_id") in self.sources


def read_takedown(out: str | Path) -> Takedown:
    """What a folder's takedown.txt says: "row ID  # why" or "source ID  # why" a line.

    Raises:
        ValueError: another kind of line: what must go would stay.
    """
    path = Path(out) / TAKEDOWN
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return Takedown()
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for line in lines:
        words, _, why = line.partition("#")
        if not words.strip():
            continue
        kind, _, name = words.strip().partition(" ")
        if kind not in KINDS or not re.fullmatch("[0-9a-f]{8,}", name.strip()):
            raise ValueError(f"{path}: expected 'row ID' or 'source ID', got {line!r}")
        found[kind][name.strip()] = why.strip()
    return Takedown(found["row"], found["source"])


def write_takedown(out: str | Path, more: Takedown) -> None:
    """Adds to what was taken down before."""
    before = read_takedown(out)
    lines = [
        f"{kind} {name}  # {why}\n"
        for kind, ids in (("row", {**more.rows, **before.rows}), ("source", {**more.sources, **before.sources}))
        for name, why in sorted(ids.items())
    ]
    write_text(Path(out) / TAKEDOWN, "".join(lines))
