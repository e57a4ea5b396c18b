"""The times that a transcript carries in its text, read strictly: what is not surely a time is none."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

from afn_model.scoring.text import answer_in, clock_seconds

PAST_END = 0.5  # seconds that a time may lie beyond the end of the recording
_CLOCK = r"(?:\d{1,2}:)?\d{1,3}:[0-5]\d(?:[.,]\d{1,3})?"
_UNIT = r"\d+(?:\.\d+)?\s?s(?:ec(?:onds?)?)?\b"
_NUMBER = r"\d+(?:\.\d+)?"
_TO = r"\s*(?:-->|-|–|—|\bto\b)\s*"
# Who speaks may be said before the time instead of behind it.
_WHO = r"(?P<who>\[?(?:Speaker[ _]|S)\d+\]?:?[ \t]+)?"
# In each form the groups a and b are the two times, b where there is one. Whole numbers of seconds are taken in pairs
# alone: "[2]" may count anything.
FORMS = {
    "bracketed": rf"{_WHO}\[\s*(?:(?P<a>{_CLOCK}|{_UNIT}|{_NUMBER}){_TO}(?P<b>{_CLOCK}|{_UNIT}|{_NUMBER})"
    rf"|(?P<c>{_CLOCK}|{_UNIT}|\d+\.\d+))\s*\]:?[ \t]*",
    "in parentheses": rf"{_WHO}\(\s*(?P<a>{_CLOCK}|{_UNIT}){_TO}(?P<b>{_CLOCK}|{_UNIT})\s*\):?[ \t]*",
    "whisper": r"<\|(?P<a>\d+\.\d{1,3})\|>[ \t]*",
    "subtitles": rf"(?:^\d+[ \t]*\n)?^(?P<a>{_CLOCK})[ \t]*-->[ \t]*(?P<b>{_CLOCK})[^\n]*\n",
    "lines": rf"^{_WHO}(?P<a>{_CLOCK})(?:{_TO}(?P<b>{_CLOCK}))?(?::[ \t]+|[ \t]+-[ \t]+|[ \t]+|$)",
}
_FORMS = {name: re.compile(form, re.MULTILINE) for name, form in FORMS.items()}


@dataclass(frozen=True)
class Segment:
    """What is said from ``start`` to ``end``, in seconds; ``span`` is where it stands in the answer, with its times."""

    start: float
    end: float
    text: str
    span: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Timed:
    """A transcript's segments.

    Args:
        segments: in the order of the text; none where it carries no times, or times that cannot be right.
        status: "model" where the times are the model's; "none" without times; otherwise what is wrong with them:
            "reversed" (an end before its start), "order" (a start before the one before it) or "past end".
    """

    segments: list[Segment]
    status: str


def read_times(text: str, seconds: float) -> Timed:
    """The segments of a transcript that carries times.

    One form of times is looked for, the one that comes first: ``[0:12 - 0:18]``, ``[3.2]``, ``(3.2 s to 4 s)``,
    ``<|3.20|>``, ``00:00:03,200 --> 00:00:04,000``, or ``0:12`` at the beginning of every line. A segment is the text
    behind a time up to the next one, and ends with it, or with the recording, unless its own end is given. What stands
    before the first time begins with the recording. Numbers in running text are never times.

    Args:
        text: an answer; of one with thinking, what follows that.
        seconds: of the recording, 0 is its beginning.
    """
    said = answer_in(text)
    before = max(0, text.rfind(said))
    text, marks = said, _marks(said)
    if not marks:
        return Timed([], "none")
    times = [(_first(mark), _last(mark)) for mark in marks]
    starts = [start for start, _ in times]
    if max(end if end is not None else start for start, end in times) > seconds + PAST_END:
        return Timed([], "past end")
    if any(end is not None and end < start for start, end in times):
        return Timed([], "reversed")
    if any(later < earlier for earlier, later in pairwise(starts)):
        return Timed([], "order")
    first = _said("", text[: marks[0].start()].removeprefix("WEBVTT"))
    found = [Segment(0.0, starts[0], first, (before, before + marks[0].start()))]
    for mark, after, (start, end), following in zip(
        marks, [*marks[1:], None], times, [*starts[1:], seconds], strict=True
    ):
        last = after.start() if after else len(text)
        said = _said(mark.groupdict().get("who"), text[mark.end() : last])
        stop = following if end is None else end
        span = (before + mark.start(), before + last)
        found.append(Segment(min(start, seconds), min(stop, seconds), said, span))
    return Timed([one for one in found if one.text], "model")


def shift_times(text: str, offset: float) -> str:
    """A transcript whose times are later by some seconds, in the form that they have; other text stays."""
    marks = _marks(text)
    for mark in reversed(marks):
        for name in ("b", "c", "a"):
            if mark.groupdict().get(name) is not None:
                first, last = mark.span(name)
                text = text[:first] + _shifted(mark[name], offset) + text[last:]
    return text


def time_marks(text: str) -> list[tuple[int, int, str]]:
    """Where the times of a transcript stand in its text, right or wrong ones: (start, end, the speaker that is named
    there or "")."""
    return [(mark.start(), mark.end(), _said(mark.groupdict().get("who"), "")) for mark in _marks(text)]


def _marks(text: str) -> list[re.Match]:
    """The times of the form that comes first, with what stands around them."""
    found = {name: [m for m in form.finditer(text) if _valid(m)] for name, form in _FORMS.items()}
    lines = [line for line in text.splitlines() if line.strip()]
    # A line of running text may begin with a clock time: in this form all lines begin with one.
    if len(found["lines"]) < len(lines):
        found["lines"] = []
    return min(filter(None, found.values()), key=lambda marks: marks[0].start(), default=[])


def _valid(mark: re.Match) -> bool:
    found = mark.groupdict()
    return all(_seconds(found[name]) is not None for name in "abc" if found.get(name) is not None)


def _first(mark: re.Match) -> float:
    found = mark.groupdict()
    return _seconds(found["a"] or found["c"]) or 0.0


def _last(mark: re.Match) -> float | None:
    end = mark.groupdict().get("b")
    return None if end is None else _seconds(end)


def _seconds(time: str) -> float | None:
    """None where a clock has more than 59 minutes beside hours."""
    if ":" not in time:
        found = re.match(_NUMBER, time)
        return float(found[0]) if found else None
    *hours, minutes, _ = time.split(":")
    return None if hours and int(minutes) > 59 else clock_seconds(time)


def _shifted(time: str, offset: float) -> str:
    separator = "," if "," in time else "."
    fraction = re.search(r"[.,](\d+)", time)
    digits = len(fraction[1]) if fraction else 0
    later = (_seconds(time) or 0.0) + offset
    if ":" not in time:
        number = re.match(_NUMBER, time)
        return f"{later:.{digits}f}" + time[number.end() if number else 0 :]
    return clock(later, digits, separator, hours=time.count(":") == 2 or later >= 3600)


def clock(seconds: float, digits: int = 3, separator: str = ".", *, hours: bool = True) -> str:
    """``HH:MM:SS.mmm`` or ``MM:SS.mmm``, rounded to so many digits."""
    units = round(seconds * 10**digits)
    whole, part = divmod(units, 10**digits)
    minutes, s = divmod(whole, 60)
    before = f"{minutes // 60:02d}:{minutes % 60:02d}" if hours else f"{minutes:02d}"
    return f"{before}:{s:02d}" + (f"{separator}{part:0{digits}d}" if digits else "")


def _said(who: str | None, text: str) -> str:
    return f"{(who or '').strip()} {text.strip()}".strip()
