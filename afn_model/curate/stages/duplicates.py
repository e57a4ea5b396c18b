"""Recordings that are there more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.curate.stage import Context, Dropped, Kept, Outcome, Resources, Row, Stage

LOSSLESS = frozenset({"wav", "flac", "aiff", "au", "caf", "w64", "nistsphere", "wv", "tta", "ape"})


@dataclass(frozen=True)
class ExactDuplicates(Stage):
    """Of recordings with the same bytes or the same samples one stays: that with the best licence, then with the best
    quality, then with the smallest id. ``copies`` of it are the other ones: [{"id", "source_id"}]."""

    name: ClassVar[str] = "exact-duplicates"
    reads: ClassVar[tuple[str, ...]] = ("source_id", "pcm_id", "uses", "format", "rate", "channels", "bytes")
    writes: ClassVar[tuple[str, ...]] = ("copies",)
    drops: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(batch=1)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        best: dict[str, Row] = {}
        copies: dict[str, list[dict[str, str]]] = defaultdict(list)
        groups = same([(row["source_id"], row["pcm_id"]) for row in rows])
        for row, group in zip(rows, groups, strict=True):
            if group not in best or preference(row) < preference(best[group]):
                best[group] = row
        for row, group in zip(rows, groups, strict=True):
            if best[group] is not row:
                copies[group].append({"id": row["id"], "source_id": row["source_id"]})
        found: list[Outcome] = []
        for row, group in zip(rows, groups, strict=True):
            if best[group] is row:
                listed = sorted(copies[group], key=lambda one: one["id"])
                found.append(Kept({"copies": listed}, {"copies": len(listed)} if listed else {}))
            else:
                found.append(Dropped("the same recording", best[group]["id"]))
        return found


def preference(row: Mapping[str, Any]) -> tuple:
    """What comes first is kept: more uses that are allowed, no lossy coding, rate, channels, bytes, the smallest id."""
    uses = sum(row["uses"].get(use) is True for use in ("train", "annotations", "audio"))
    return -uses, row["format"] not in LOSSLESS, -row["rate"], -row["channels"], -row["bytes"], row["id"]


def same(marks: Sequence[Sequence[str]]) -> list[str]:
    """For each item the group that it is in: items that share a mark, directly or through others, are in one."""
    leader: dict[str, str] = {}

    def find(mark: str) -> str:
        while leader.setdefault(mark, mark) != mark:
            leader[mark] = mark = leader[leader[mark]]
        return mark

    for first, *others in marks:
        for other in others:
            leader[find(other)] = find(first)
    return [find(first) for first, *_ in marks]
