"""The moments and spans that a text states, wherever in it and however they are written.

One scanner finds amounts of time and clocks, each form once; the words around each decide whether it says when or for
how long. Tempi, frequencies, scores, verses and times of day are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from afn_model.infer.time_words import (
    AND,
    BEFORE_END,
    CLOSING,
    END_KEY,
    JOINED,
    MARK,
    OPENING,
    RANGE,
    REST,
    SPELLED,
    UNITS,
    WHEN,
    FoundTime,
    is_no_clock,
    number_value,
    says_when,
    words_before,
)
from afn_model.scoring.text import answer_span, clock_seconds


@dataclass(frozen=True)
class StatedTime:
    """A moment, or a span, that a text states.

    Args:
        start: seconds.
        end: seconds, of a span; None of a moment.
        text: how it is written.
        where: "answer", or "think" in what comes before it.
        span: ``text`` is these characters of the whole.
    """

    start: float
    end: float | None
    text: str
    where: Literal["think", "answer"]
    span: tuple[int, int]


_NUMBER = r"\d{1,6}(?:\.\d{1,4})?"
_EITHER = rf"(?:\d{{1,3}}(?:\.\d{{1,4}})?|{SPELLED})"
_HALF = r"[ -]and[ -]a[ -]half"
_UNIT = r"(?:hours?|hrs?|minutes?|mins?|seconds?|secs?|s)(?![\w'’])"
_LIST = (
    rf"(?:(?<!minute )(?<!minutes ){_EITHER}(?:,[ ]{_EITHER}){{0,8}},?[ ]?"
    r"(?:\b(?:and|or|to|through|until|till)[ ]|[-–—][ ]?)(?:about[ ]|around[ ])?)?"
)
_KEY = r"(?:start|begin|onset|from|time|timestamp|end|stop|offset|to)(?:_?(?:time|seconds|sec|s))?"
_TO = r"\s{0,2}(?:-->|-|–|—|to\b)\s{0,2}"
_S = r"(?:[ ]?s(?:ec)?)?"
_POINT = r"\d{1,6}\.\d{1,4}"
_FORMS = {
    "tag": r"(?<=<\|)\d{1,6}\.\d{1,3}(?=\|>)",
    # Whole numbers are taken in pairs alone: "[2]" may count anything.
    "bracket": rf"(?:(?<=\[)|(?<=\[ ))(?:{_NUMBER}{_S}{_TO}{_NUMBER}|{_POINT},[ ]?{_POINT}"
    rf"|{_NUMBER}[ ]?s,[ ]?{_NUMBER}(?=[ ]?s)|{_POINT})(?={_S}[ ]?\]){_S}",
    "key": rf"(?<!\w)(?:{_KEY}[\"']?[ ]?[:=][ ]?[\"']?|timestamps?[ ]|t[ ]?=[ ]?){_NUMBER}(?!\w|[:.]\d|[ ]?[%/]"
    r"|[ ]?(?:[a-z]{0,5}Hz|bpm|dB|ms|s\b|sec|min|hour|LUFS))",
    "clock": r"(?<![\w:.,/])(?:\d{1,2}:)?\d{1,3}:\d\d(?:[.,]\d{1,3})?s?(?!\w|:\d|/\d)",
    "prime": r"(?<![\w.'])\d{1,3}['′][0-5]\d(?:\.\d{1,3})?(?:\"|″|'')",
    "short": r"(?<![\w.])(?:\d{1,2}[ ]?h[ ]?)?\d{1,3}[ ]?m[ ]?\d{1,2}(?:\.\d{1,3})?[ ]?s(?!\w)",
    "amount": rf"(?<![\w.:])(?<!\d/)(?:{_LIST}(?:{_NUMBER}(?:{_HALF})?[ -]?|{SPELLED}(?:{_HALF})?[ -]){_UNIT}"
    rf"(?:{_HALF})?|half[ -](?:an?[ ])?{_UNIT}|(?:an?[ ])?(?:minute|hour)(?:s?{_HALF})|an?[ ](?:minute|hour)(?!\w)"
    r"|(?:(?<=first )|(?<=opening )|(?<=final )|(?<=last ))(?:minute|hour)(?!\w))",
    "counted": rf"(?<!\w)(?:second|minute)s?[ ]{_EITHER}(?:(?:[ ]?[-–][ ]?|[ ](?:to|and)[ ]){_EITHER})?(?!\w|[:.]\d)",
}
# All begin with a digit, or a word with one of these letters.
_SCANNER = re.compile(
    r"\b(?=[\dabefhmnost])(?:" + "|".join(f"(?P<{name}>{form})" for name, form in _FORMS.items()) + ")", re.IGNORECASE
)
_NUMBERS = re.compile(rf"(?<![\w.])(?:{_NUMBER}|{SPELLED})(?!\d)", re.IGNORECASE)
_ATOM = re.compile(r"[a-z]+", re.IGNORECASE)


def stated_times(text: str, seconds: float | None = None, *, thinking: bool = False) -> list[StatedTime]:
    """The moments and spans that a text states, in its order; no two overlap.

    Read are seconds (``at 12 seconds``, ``3.2s``, ``the 30-second mark``, ``ten seconds in``), clocks (``1:05``,
    ``01:05.250``, ``1:02:03``), ``1m05s``, ``one minute and five seconds``, ranges of all of these, lists (``at 2 and
    9 seconds``), ``[12 - 15]``, ``<|3.20|>``, subtitles, ``"start": 3.2, "end": 4.1``, and ``the first ten seconds``,
    which is a span from 0. How long something takes (``lasts 12 seconds``, ``a 30-second clip``) is no stated time, nor
    are places without a number (``at the end``). A clock of two parts is minutes and seconds, in a text where that is
    impossible for one of them (``2:75``) seconds and hundredths.

    Args:
        text: what a model has said, its thinking included.
        seconds: of the recording. Times that are told from its end (``the last five seconds``) need it; without it they
            are left out.
        thinking: the text begins inside of ``<think>``.
    """
    found = _merged(text, list(_scan(text)))
    _judge(text, found)
    found = _with_one_unit([one for one in found if one.kept])
    answer, until = answer_span(text, thinking=thinking)
    stated = []
    for start, end, first, last in _spans(text, found, seconds):
        while text[first].isspace():
            first += 1
        where: Literal["think", "answer"] = "answer" if answer <= first < until else "think"
        stated.append(StatedTime(start, end, text[first:last], where, (first, last)))
    return stated


def _scan(text: str) -> Iterator[FoundTime]:
    for match in _SCANNER.finditer(text):
        form, said, start, end = match.lastgroup or "", match[0], match.start(), match.end()
        if form in ("tag", "bracket", "key"):
            values = [(float(m[0]), start + m.start(), start + m.end()) for m in re.finditer(_NUMBER, said)]
            if form == "bracket" and len(values) > 1:
                values[-1] = (*values[-1][:2], end)
            yield FoundTime(form, values[0][1], end, values, [True] * (len(values) - 1))
        elif form in ("clock", "prime", "short"):
            clock = said.rstrip("\"″' sS")
            clock = re.sub(r"[^\d.,]+", ":", clock) if form != "clock" else clock
            if (value := _clock(clock, form)) is not None:
                pair = re.fullmatch(r"(\d+):(\d\d)", clock)
                yield FoundTime(form, start, end, [(value, start, end)], pair=pair and (int(pair[1]), int(pair[2])))
        elif form == "counted":
            scale = 60 if said[0] in "mM" else 1
            values = [(scale * number_value(m[0]), start + m.start(), start + m.end()) for m in _NUMBERS.finditer(said)]
            values[0] = (values[0][0], start, values[0][2])
            yield FoundTime(form, start, end, values, [" and " not in said] * (len(values) - 1), unit=said[0].lower())
        else:
            yield _amount(said, start, end)


def _clock(clock: str, form: str) -> float | None:
    """None of what no clock can show."""
    *hours, minutes, _ = clock.split(":")
    return None if hours and int(minutes) > 59 and form == "clock" else clock_seconds(clock)


def _amount(said: str, start: int, end: int) -> FoundTime:
    """Numbers and the unit behind the last of them."""
    lower = said.lower()
    unit = [m[0] for m in _ATOM.finditer(lower) if m[0][0] in "hms" and re.fullmatch(_UNIT, m[0])][-1]
    scale, numbers = UNITS[unit[0]], list(_NUMBERS.finditer(said))
    if not numbers:  # half a minute, a minute and a half
        half, value = lower.startswith("half"), 1.0
        numbers_of = [((0.5 if half else 1.5 if "half" in lower else value) * scale, start, end)]
        return FoundTime("amount", start, end, numbers_of, unit=unit)
    values = [(number_value(m[0]) * scale, start + m.start(), start + m.end()) for m in numbers]
    ranged = []
    for this, following in pairwise(numbers):
        between = lower[this.end() : following.start()]
        ranged.append(not re.search(r",|\b(?:and|or)\b", between))
    if lower[numbers[-1].end() :].count("half"):
        values[-1] = (values[-1][0] + 0.5 * scale, *values[-1][1:])
    values[-1] = (values[-1][0], values[-1][1], end)
    return FoundTime("amount", start, end, values, ranged, unit=unit)


def _merged(text: str, found: list[FoundTime]) -> list[FoundTime]:
    """One minute and five seconds is one time; so is one minute ten."""
    merged: list[FoundTime] = []
    for one in found:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.form == one.form == "amount"
            and len(one.values) == 1
            and UNITS[last.unit[0]] > UNITS[one.unit[0]]
            and one.start - last.end <= 6
            and JOINED.fullmatch(text, last.end, one.start)
        ):
            value, first, _ = last.values[-1]
            last.values[-1] = (value + one.values[0][0], first, one.end)
            last.end, last.unit = one.end, one.unit
        else:
            merged.append(one)
    for one, following in zip(merged, [*merged[1:], None], strict=False):
        rest = REST.match(text, one.end) if one.form == "amount" and one.unit.startswith("minute") else None
        if rest and (following is None or following.start >= rest.end()):
            value, first, _ = one.values[-1]
            one.values[-1] = (value + number_value(rest[1]), first, rest.end())
            one.end, one.unit = rest.end(), "seconds"
    return merged


def _judge(text: str, found: list[FoundTime]) -> None:
    """Which of them say when something is."""
    for one in found:
        one.marked = one.form == "amount" and MARK.match(text, one.end) is not None
    for one, following in pairwise(found):
        if following.marked and one.form == "amount" and _joins(text, one, following, RANGE, AND):
            one.marked = True
    last = None
    for one in found:
        if one.form in ("tag", "bracket", "key"):
            one.kept = True
        elif last is not None and not last.kept and _joins(text, last, one, RANGE):
            one.kept = False  # takes 5 s to 8 s
        elif one.form == "counted":
            words = words_before(text, one.start)
            ordinal = text[max(0, one.start - 4) : one.start].lower() == "the "
            one.kept = bool(words) and not ordinal and (words[-1] in WHEN or words[-1] in ("to", "of"))
        elif one.form == "amount":
            one.kept = says_when(text, one, last)
        else:
            one.kept = not is_no_clock(text, one)
        last = one


def _joins(text: str, one: FoundTime, following: FoundTime, *words: re.Pattern) -> bool:
    """Whether nothing but such words stands between two times."""
    near = following.start - one.end < 24
    return near and any(some.fullmatch(text, one.end, following.start) for some in words)


def _with_one_unit(found: list[FoundTime]) -> list[FoundTime]:
    """Clocks of a text are minutes and seconds, or all of them are seconds and hundredths."""
    impossible = [one for one in found if one.pair is not None and one.pair[1] > 59]
    if not impossible:
        return found
    if any(one.form == "clock" and one.pair is None for one in found):
        return [one for one in found if one not in impossible]
    for one in found:
        if one.pair is not None:
            one.values[0] = (one.pair[0] + one.pair[1] / 100, *one.values[0][1:])
    return found


def _spans(text: str, found: list[FoundTime], seconds: float | None) -> Iterator[tuple[float, float | None, int, int]]:
    """(start, end, first character, last character + 1) of each time."""
    times, linked = [], []  # the values, and whether the next one is the end of a span that each begins
    for one, following in zip(found, [*found[1:], None], strict=False):
        lead = words_before(text, one.start)[-1:]
        if lead and lead[0] in OPENING:
            times.append((0.0, one.length, *one.values[-1][1:]))
            linked.append(False)
            continue
        ending, before_end = bool(lead) and lead[0] in CLOSING, BEFORE_END.match(text, one.end) is not None
        if one.form == "amount" and (ending or before_end):
            if seconds is not None:
                at = seconds - one.length
                times.append((at, seconds if ending else None, *one.values[-1][1:]))
                linked.append(False)
            continue
        pair = lead == ["between"] and len(one.values) == 2
        times += [(value, None, first, last) for value, first, last in one.values]
        linked += [ranged or pair for ranged in one.ranged]
        linked.append(following is not None and _is_one_span(text, one, following, lead))
    skip = False
    for (start, end, first, last), link, following in zip(times, linked, [*times[1:], None], strict=False):
        if skip:
            skip = False
        elif link and following is not None:
            yield start, following[0], first, following[3]
            skip = True
        else:
            yield start, end, first, last


def _is_one_span(text: str, one: FoundTime, following: FoundTime, lead: list[str]) -> bool:
    first, last = one.values[-1][2], following.values[0][1]
    if last - first > 24 or "tag" in (one.form, following.form) or "bracket" in (one.form, following.form):
        return False
    if RANGE.fullmatch(text, first, last):
        return True
    if lead == ["between"]:
        return AND.fullmatch(text, first, last) is not None
    return END_KEY.fullmatch(text, first, last) is not None
