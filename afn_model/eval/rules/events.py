"""Timestamped captions: events by label, onset and offset, in the manner of DCASE's event-based scores."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from afn_model.eval.items import AnsweredItem
from afn_model.eval.score import Part, Score, Tools, quotient, ratio
from afn_model.infer.stated_times import StatedTime, stated_times

EPS = 1e-6  # seconds: 2.2 is 0.2 after 2.0 in decimals, and a little more in binary
_PIECE = re.compile(r"[;\n}]|[.!?](?!\d)")
_COMMA = re.compile(r",")
# Plain numbers with a point are a time in pairs alone, as DCASE writes them: 0.5-1.2, or with a tab between.
_SPAN = re.compile(r"(?<![\w.:\[(<|-])(\d+\.\d+)[ ]?(?:-|–|—|\bto\b|\t)[ ]?(\d+\.\d+)(?![\w.:%\])>|]|[ ]?s\b)")
_ENDS = re.compile(r"\b(?:ends?|stops?|until|till|finish\w*|offset)\b", re.IGNORECASE)


class Event(NamedTuple):
    """Something is heard from ``start`` to ``end`` seconds; an answer may leave the end open."""

    label: str
    start: float
    end: float | None


def named(label: str) -> str:
    """A label as answers are compared with it: ``Alarm_bell`` is "alarm bell"."""
    return re.sub(r"[_\s]+", " ", label).strip().lower()


def events_in(text: str, labels: Sequence[str], seconds: float | None = None) -> tuple[list[Event], int]:
    """The events that an answer states.

    Times are those that ``stated_times`` finds behind thinking, and pairs of plain numbers with a point. Each goes with
    the labels of its piece: a sentence, a line, what stands between semicolons or braces, or between commas where each
    of these parts has both. A piece's only label has all of its times. Of several labels a time has those that stand
    before it, up to the time before, or those behind it where the piece begins with a time. A moment that is said to be
    the end ("and ends at 1.2 s") is the end of the event before.

    Args:
        text: an answer.
        labels: all that there are.
        seconds: of the recording, for times that are told from its end.
    Returns:
        (events in the order of the text, times that no label is named for).
    """
    said = _SPAN.sub(r"[\1 - \2]", text.replace("_", " "))
    times = [one for one in stated_times(said, seconds) if one.where == "answer"]
    names = sorted({named(label) for label in labels}, key=len, reverse=True)
    if not names:
        return [], len(times)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)
    mentions = [(found.start(), found[0].lower()) for found in pattern.finditer(said)]
    events, lost = list[Event](), 0
    for start, end in _pieces(said, times, [at for at, _ in mentions]):
        inside = [one for one in times if start <= one.span[0] < end]
        found = [(at, label) for at, label in mentions if start <= at < end]
        paired = list(_paired(inside, found))
        lost += len(inside) - len({time.span for time, _ in paired})
        for time, label in paired:
            last = events[-1] if events and events[-1].label == label else None
            before = said[max(start, time.span[0] - 24) : time.span[0]]
            if last and last.end is None and time.end is None and time.start >= last.start and _ENDS.search(before):
                events[-1] = Event(label, last.start, time.start)
            else:
                events.append(Event(label, time.start, time.end))
    return events, lost


def _pieces(text: str, times: Sequence[StatedTime], mentions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where the parts of an answer begin and end whose labels and times belong together."""

    def cut(mark: re.Pattern, start: int, end: int) -> list[tuple[int, int]]:
        return list(pairwise([start, *(found.end() for found in mark.finditer(text, start, end)), end]))

    for start, end in cut(_PIECE, 0, len(text)):
        parts = cut(_COMMA, start, end)
        has = [(any(a <= one.span[0] < b for one in times), any(a <= at < b for at in mentions)) for a, b in parts]
        if all(time == label for time, label in has):
            yield from parts
        else:
            yield start, end


def _paired(times: Sequence[StatedTime], labels: Sequence[tuple[int, str]]) -> Iterator[tuple[StatedTime, str]]:
    if len({label for _, label in labels}) == 1:
        yield from ((time, labels[0][1]) for time in times)
    elif times and labels:
        first = times[0].span[0] < labels[0][0]  # times stand before their labels
        places = [time.span[0] for time in times]
        for place, time in enumerate(times):
            low = places[place] if first else (places[place - 1] if place else -1)
            high = (places[place + 1] if place + 1 < len(places) else float("inf")) if first else places[place]
            here = [label for at, label in labels if low < at < high]
            if not here and not first:  # one more time of the same label
                here = [label for at, label in labels if at < low][-1:]
            yield from ((time, label) for label in dict.fromkeys(here))


def matched(
    reference: Sequence[Event], said: Sequence[Event], *, collar: float, length_share: float | None
) -> list[tuple[int, int]]:
    """Pairs (place in ``reference``, place in ``said``), as many as there can be: one to one, of one label, onsets at
    most ``collar`` seconds apart, and offsets at most max(``collar``, ``length_share`` · the reference's length) where
    that is not None."""
    from scipy.optimize import linear_sum_assignment

    fits = np.zeros((len(reference), len(said)))
    for row, right in enumerate(reference):
        for column, one in enumerate(said):
            near = named(right.label) == named(one.label) and abs(right.start - one.start) <= collar + EPS
            if near and length_share is not None:
                length = (right.end or 0.0) - right.start
                near = (
                    one.end is not None
                    and abs((right.end or 0.0) - one.end) <= max(collar, length_share * length) + EPS
                )
            fits[row, column] = near
    rows, columns = linear_sum_assignment(fits, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if fits[row, column]]


def event_f1(
    answered: Sequence[AnsweredItem],
    tools: Tools,
    *,
    collar: float = 0.5,
    offset: bool = False,
    length_share: float = 0.2,
) -> Score:
    """Event-based F1 in percent, F1 = 2 TP / (2 TP + FP + FN), over the events of all items (micro); the mean over
    labels (macro) and each label's are sub-scores.

    Args:
        answered, tools: as of every rule; items have ``extra["events"]``, ``["seconds"]`` and all labels as choices.
        collar: seconds that an onset may be off.
        offset: offsets must fit too, within max(``collar``, ``length_share`` · the event's length); an event whose end
            the answer leaves open is then wrong.
        length_share: of the event.

    Source: Mesaros et al. 2016, as sed_eval computes it with ``event_matching_type="optimal"``.
    """
    parts: list[Part | None] = []
    right, stated, there = Counter[str](), Counter[str](), Counter[str]()
    apart, read, unparsed, lost = list[float](), list[str](), 0, 0
    for one in answered:
        if one.item.extra.get("events") is None:
            parts.append(None)
            read.append("")
            continue
        reference = [Event(event["label"], event["start"], event["end"]) for event in one.item.extra["events"]]
        said, unnamed = events_in(one.text or "", one.item.choices, one.item.extra["seconds"])
        pairs = matched(reference, said, collar=collar, length_share=length_share if offset else None)
        lost += unnamed
        unparsed += bool(reference) and not said
        read.append(
            "; ".join(f"{label} {start:g}" + (f"-{end:g}" if end is not None else "") for label, start, end in said)
        )
        apart += [abs(reference[row].start - said[column].start) for row, column in pairs]
        for count, events in ((there, reference), (stated, said), (right, [reference[row] for row, _ in pairs])):
            count.update(named(event.label) for event in events)
        parts.append((2.0 * len(pairs), float(len(reference) + len(said))))
    within = f", offset within max({collar:g} s, {100 * length_share:g} % of the length)" if offset else ""
    score = ratio(
        answered,
        parts,
        scale=100,
        unparsed=unparsed,
        extracted=read,
        signature=f"event-based F1, onset within {collar:g} s{within}, optimal matching",
    )
    by_label = {
        label: quotient([(2.0 * right[label], float(there[label] + stated[label]))], 100) for label in there | stated
    }
    score.groups |= {f"label: {label}": (by_label[label], there[label]) for label in sorted(by_label)}
    if by_label:
        macro = sum(by_label.values()) / len(by_label)
        score.groups["macro: labels"] = (macro, len(by_label))
    total = sum(right.values())
    score.notes.append(
        f"{total} of {sum(there.values())} events found, {sum(stated.values()) - total} stated that fit none"
    )
    if apart:
        score.notes.append(f"onsets that fit are {np.mean(apart):.3f} s off in the mean")
    if lost:
        score.notes.append(f"{lost} times stand with no label of the set and count as nothing")
    return score
