"""Clips that are worth questions: runs of adjacent segments in which most is to be heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from afn_model.checks import number
from afn_model.curate import identity
from afn_model.curate.stage import Context, Failed, Kept, Outcome, Resources, Row, Stage

OVERLAP = 0.5  # of the shorter one of two clips, that may be in the other
_EDGE = 1e-3  # seconds: two segments are adjacent, two lengths the same
_NONE = -(2**60)  # worth of what cannot be


@dataclass(frozen=True)
class ClipWindow:
    """A run of segments.

    Args:
        start, end: seconds of the recording.
        segments: ids.
        score: mean over its seconds; those of a segment without a score count as 0.
    """

    start: float
    end: float
    segments: tuple[str, ...]
    score: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def worth(self, price: float) -> int:
        """Milliseconds × (score - price), rounded."""
        return round(1000 * self.seconds * (self.score - price))

    def beside(self, other: ClipWindow) -> bool:
        """Whether both may be taken."""
        common = min(self.end, other.end) - max(self.start, other.start)
        return common <= OVERLAP * min(self.seconds, other.seconds) + _EDGE


@dataclass(frozen=True)
class Mine(Stage):
    """Writes ``clips``: [{"id", "start", "end", "score", "segments"}] by start.

    A window is worth its seconds × (its mean score - ``price``), so that it goes on for as long as there is enough to
    be heard. Those are taken that are worth most in total, while no two have more than half of the shorter one in
    common. Where none is worth anything the best one is taken all the same; a recording without captions has no clips,
    and one shorter than ``least`` is one clip.

    Args:
        least, most: seconds of a clip.
        price: score that a segment must have to be worth its seconds, and a clip in the mean.
        hourly: clips of an hour, at most, up to 360; a recording has at least one.

    Raises:
        ValueError: a parameter out of range.
    """

    name: ClassVar[str] = "mine"
    reads: ClassVar[tuple[str, ...]] = ("segments", "merged", "scores", "source_id", "seconds")
    writes: ClassVar[tuple[str, ...]] = ("clips",)
    resources: ClassVar[Resources] = Resources(seconds=0.3)

    least: float = 10.0
    most: float = 30.0
    price: float = 3.0
    hourly: float = 40.0

    def __post_init__(self):
        if not 0 < number(self.least, "least") <= number(self.most, "most"):
            raise ValueError(f"0 < least <= most is needed, got least {self.least} and most {self.most}")
        number(self.price, "price")
        if not 0 < number(self.hourly, "hourly") <= 360:
            raise ValueError(f"hourly is above 0 and up to 360, got {self.hourly}")

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        return [self._mined(row) for row in rows]

    def _mined(self, row: Row) -> Outcome:
        captioned = {one["segment"] for one in row["merged"]} & {one["id"] for one in row["segments"]}
        if not captioned:
            return Kept({"clips": []}, {"recordings without a clip": 1})
        offers = windows(row["segments"], row["scores"], self.least, self.most)
        offers = [one for one in offers if captioned.intersection(one.segments)]
        if not offers:
            return Failed(f"no run of segments is from {self.least:g} to {self.most:g} s long")
        taken = best(offers, self.price, max(1, int(self.hourly * row["seconds"] / 3600 + 1e-9)))
        tally = {"clips": len(taken), "seconds of clips": round(sum(one.seconds for one in taken))}
        if taken[0].worth(self.price) <= 0:
            tally["clips that are not worth their price, for want of others"] = 1
        found = [
            {
                "id": identity.segment_id(row["source_id"], one.start, one.end),
                "start": one.start,
                "end": one.end,
                "score": round(one.score, 3),
                "segments": list(one.segments),
            }
            for one in taken
        ]
        return Kept({"clips": found}, tally)


def windows(
    segments: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]], least: float, most: float
) -> list[ClipWindow]:
    """The runs of adjacent segments of so many seconds; those of a recording that is shorter have all of it.

    Args:
        segments: [{"id", "start", "end"}] in order.
        scores: [{"segment", "score"}].
        least, most: seconds.
    """
    known = {one["segment"]: float(one["score"]) for one in scores}
    if segments and segments[-1]["end"] - segments[0]["start"] < least - _EDGE:
        least = segments[-1]["end"] - segments[0]["start"]
    found = []
    for first in range(len(segments)):
        total, names = 0.0, list[str]()
        for at in range(first, len(segments)):
            one = segments[at]
            if names and abs(one["start"] - segments[at - 1]["end"]) > _EDGE:
                break
            seconds = one["end"] - segments[first]["start"]
            if seconds > most + _EDGE:
                break
            names.append(one["id"])
            total += (one["end"] - one["start"]) * known.get(one["id"], 0.0)
            if seconds >= least - _EDGE:
                score = total / seconds if seconds else 0.0
                found.append(ClipWindow(segments[first]["start"], one["end"], tuple(names), score))
    return found


def best(offers: Sequence[ClipWindow], price: float, limit: int) -> list[ClipWindow]:
    """Up to so many windows that may be taken together and are worth most in total, in order; where none is worth
    anything, the one that is worth most.

    If a window is beside the one before it by start, it is beside all that were taken before: one that is shorter than
    their common part would lie within the one before it. So the best total of c windows that end with a window needs
    those of c - 1 windows that end with each before it.

    Args:
        offers: windows, at least one.
        price: as ``Mine`` has it.
        limit: of windows.
    """
    able = sorted((one for one in offers if one.worth(price) > 0), key=lambda one: (one.start, one.end))
    if not able:
        return [max(offers, key=lambda one: (one.worth(price), -one.start, -one.end))]
    limit, longest, gone = min(limit, len(able)), max(one.seconds for one in able), 0
    totals = np.full((len(able), limit), _NONE)  # [last window, number of windows - 1]
    passed = np.full(limit, _NONE)  # of all that end before the window begins
    for place, one in enumerate(able):
        while able[gone].start + longest <= one.start:
            passed, gone = np.maximum(passed, totals[gone]), gone + 1
        near = [at for at in range(gone, place) if able[at].beside(one)]
        totals[place, 0] = one.worth(price)
        totals[place, 1:] = np.maximum.reduce([passed, *totals[near]])[:-1] + one.worth(price)
    count = int(totals.max(0).argmax())
    place = int(totals[:, count].argmax())
    taken = [able[place]]
    while count:
        left, count = totals[place, count] - able[place].worth(price), count - 1
        place = next(at for at in range(place) if totals[at, count] == left and able[at].beside(able[place]))
        taken.append(able[place])
    return taken[::-1]
