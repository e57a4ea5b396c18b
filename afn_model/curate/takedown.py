"""What must go: rows and recordings in OUT/takedown.txt, which no stage gets any more, and replies about them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afn_model.curate.reply_cache import CACHE, forget
from afn_model.files import write_text

TAKEDOWN = "takedown.txt"
KINDS = ("row", "source")
NAMED = ("id", "source_id", "segment", "annotation")  # keys of what replies are about, and of replies
_ID = re.compile(rb"\b[0-9a-f]{8,}\b")


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


def forget_replies(out: Path) -> int:
    """Deletes what annotators have replied about the rows that were taken down, their recordings, segments and clips;
    once for each state of takedown.txt. To be called before stages leave these rows out, which say what is theirs.

    Returns:
        How many replies.
    """
    done = out / CACHE / TAKEDOWN
    if not (out / TAKEDOWN).exists() or not done.parent.is_dir():
        return 0
    told = (out / TAKEDOWN).read_text("utf-8")
    if done.exists() and done.read_text("utf-8") == told:
        return 0
    taken, sources = read_takedown(out), dict[str, str]()
    for line in _lines(out, taken.rows.keys() | taken.sources.keys()):
        source = line.get("fields", {}).get("source_id")
        if source is not None and taken.has(line):
            sources[line["id"]] = source
    rows = taken.rows.keys() | sources.keys()
    ids = {*rows, *taken.sources, *sources.values()}
    for line in _lines(out, rows):
        if line["id"] in rows:
            ids.update(_named(line.get("fields"), sources.get(line["id"])))
    gone = forget(out, ids)
    write_text(done, told)
    return gone


def _lines(out: Path, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Outcomes, of plans before this one too, in which one of these ids stands."""
    wanted = {name.encode() for name in names}
    for path in sorted((out / "stages").glob("*/*.jsonl")):
        with path.open("rb") as file:
            for raw in file:
                if not wanted.isdisjoint(_ID.findall(raw)):
                    yield json.loads(raw)


def _named(value: Any, source: str | None) -> Iterator[str]:
    """Ids in the fields of a row, but for those of other recordings that they speak of."""
    if isinstance(value, dict):
        if source is not None and value.get("source_id", source) != source:
            return
        yield from (value[key] for key in NAMED if isinstance(value.get(key), str))
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _named(one, source)
