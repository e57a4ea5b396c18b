"""What captions say of recordings by time: what a writer reads, and what its questions are checked against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afn_model.curate.stage import Row

Span = tuple[int, float, float]  # number of the clip, from 1, and seconds in it


@dataclass(frozen=True)
class Moment:
    """A caption of a part of a clip: ``clip`` counts from 1, ``start`` and ``end`` are seconds in it."""

    start: float
    end: float
    text: str
    clip: int = 1

    def overlaps(self, span: Span) -> bool:
        clip, start, end = span
        return clip == self.clip and self.start < end and self.end > start


@dataclass(frozen=True)
class Timeline:
    """Captions of one clip or of several.

    Args:
        moments: in order.
        seconds: of each clip.
        annotations: ids of what the captions were made from.
    """

    moments: tuple[Moment, ...]
    seconds: tuple[float, ...]
    annotations: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        return [one.text for one in self.moments]

    def said(self) -> str:
        """A line for each caption: "0.0 to 10.0 s: a dog barks.", of several clips with "clip 2, " before it."""
        head = [f"clip {one.clip}, " if len(self.seconds) > 1 else "" for one in self.moments]
        return "\n".join(
            f"{clip}{one.start:.1f} to {one.end:.1f} s: {one.text}"
            for clip, one in zip(head, self.moments, strict=True)
        )

    def during(self, spans: Iterable[Span]) -> list[str]:
        """Captions of what overlaps with one of the spans."""
        wanted = list(spans)
        return [one.text for one in self.moments if any(map(one.overlaps, wanted))]

    def outside(self, spans: Iterable[Span]) -> list[str]:
        """Captions of all else."""
        wanted = list(spans)
        return [one.text for one in self.moments if not any(map(one.overlaps, wanted))]

    def part(self, start: float, end: float) -> Timeline:
        """Of the only clip what is heard between two moments, in seconds from the first."""
        kept = [
            replace(one, start=round(max(one.start, start) - start, 3), end=round(min(one.end, end) - start, 3))
            for one in self.moments
            if one.overlaps((1, start, end))
        ]
        return replace(self, moments=tuple(kept), seconds=(round(end - start, 3),))


def timeline_of(row: Row) -> Timeline:
    """The captions of a row's segments, as ``merge`` has written them."""
    return timeline(row["merged"], row["segments"], row["seconds"])


def timeline(merged: Sequence[Mapping[str, Any]], segments: Sequence[Mapping[str, Any]], seconds: float) -> Timeline:
    """A timeline from captions [{"segment", "text"}] and segments [{"id", "start", "end"}]; captions of no segment, and
    those that say nothing, are in none."""
    places = {one["id"]: one for one in segments}
    used = [one for one in merged if one["segment"] in places and one["text"].strip()]
    moments = [
        Moment(places[one["segment"]]["start"], places[one["segment"]]["end"], " ".join(one["text"].split()))
        for one in used
    ]
    made = [name for one in used for name in [one.get("annotation"), *one.get("annotations", ())] if name]
    order = tuple(sorted(moments, key=lambda one: (one.start, one.end)))
    return Timeline(order, (seconds,), tuple(dict.fromkeys(made)))


def joined(parts: Sequence[Timeline]) -> Timeline:
    """Several clips, one timeline each, as one."""
    moments = [replace(one, clip=number) for number, part in enumerate(parts, 1) for one in part.moments]
    names = dict.fromkeys(name for part in parts for name in part.annotations)
    return Timeline(tuple(moments), tuple(part.seconds[0] for part in parts), tuple(names))
