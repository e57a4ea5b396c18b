"""Segments of 10 s: places in a recording, with what is active there; the audio is not cut."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.audio.pieces import cut
from afn_model.audio.recording import Audio
from afn_model.checks import number
from afn_model.curate import identity
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row, Stage

CUTS = ("grid", "quiet")


@dataclass(frozen=True)
class Segments(Stage):
    """Divides a recording into segments one after another, without gap or overlap.

    segments: [{"id", "start", "end", "spans"}] in seconds of the recording; spans are cut off at the segment's ends.
    A last segment shorter than ``least`` belongs to the one before it.

    Args:
        seconds: of a segment; where cuts are quiet, at most.
        least: seconds of the last one.
        cut: at a "grid", or where it is "quiet": in the quietest 100 ms of the last fifth.

    Raises:
        ValueError: a parameter out of range.
    """

    name = "segment"
    reads = ("file", "source_id", "seconds", "spans")
    writes = ("segments",)
    resources = Resources(seconds=0.01)

    seconds: float = 10.0
    least: float = 2.0
    cut: str = "grid"

    def __post_init__(self):
        number(self.seconds, "seconds", above=0.5)
        if not 0 <= number(self.least, "least") <= self.seconds:
            raise ValueError(f"least must be from 0 to {self.seconds:g} seconds, got {self.least}")
        if self.cut not in CUTS:
            raise ValueError(f"cut must be {' or '.join(CUTS)}, got {self.cut!r:.80}")

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        return [self._divided(row, context) for row in rows]

    def _divided(self, row: Row, context: Context) -> Outcome:
        if self.cut == "grid":
            parts = grid(row["seconds"], self.seconds)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts = cut(Audio(context.out / row["file"]), self.seconds, row["seconds"])
            parts = [(round(start, 3), round(end, 3)) for start, end in parts]
        if len(parts) > 1 and parts[-1][1] - parts[-1][0] < self.least:
            parts[-2:] = [(parts[-2][0], parts[-1][1])]
        segments = [
            {
                "id": identity.segment_id(row["source_id"], start, end),
                "start": start,
                "end": end,
                "spans": within(row["spans"], start, end),
            }
            for start, end in parts
        ]
        return Kept({"segments": segments}, {"segments": len(segments)})


def grid(seconds: float, step: float) -> list[tuple[float, float]]:
    """(start, end) of the parts of so many seconds, to the millisecond; the last one may be shorter."""
    length, size = round(1000 * seconds), round(1000 * step)
    return [(at / 1000, min(at + size, length) / 1000) for at in range(0, max(length, 1), size)]


def within(spans: Sequence[dict[str, Any]], start: float, end: float) -> list[dict[str, Any]]:
    """The parts of spans between two times."""
    cut_off = ({**span, "start": max(span["start"], start), "end": min(span["end"], end)} for span in spans)
    return [span for span in cut_off if span["end"] > span["start"]]
