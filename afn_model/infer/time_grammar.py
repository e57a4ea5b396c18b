"""Grammars of transcripts whose times lie within the recording: expressions and a JSON schema for ``SamplingParams``.

That starts never go back and that no end comes before its start is not regular: ``check_times(..., kind="transcript")``
tells afterwards.
"""

from __future__ import annotations

import math
from typing import Any, Literal

Form = Literal["srt", "vtt", "brackets"]
LINE = r"[^\s\[][^\n]*"  # of text


def timed_transcript_grammar(seconds: float, form: Form = "brackets") -> str:
    """The regular expression of a transcript with times from 0 to a recording's end, or of nothing at all.

    Args:
        seconds: of the recording.
        form: "srt"; "vtt"; or "brackets", lines of ``[m:ss.s - m:ss.s] text``, with hours before the minutes where the
            recording has any. ``read_times`` reads all of them.

    Returns:
        for ``SamplingParams.grammar``, in the syntax that Python and llguidance share.

    Raises:
        ValueError: another form, or a length that is negative or longer than 99 hours.
    """
    if form == "brackets":
        line = rf"\[{time_within(seconds, form)} - {time_within(seconds, form)}\] {LINE}"
        return rf"(?:{line}(?:\n{line})*)?"
    time = time_within(seconds, form)
    cue = rf"{time} --> {time}\n[^\s\-][^\n]*(?:\n[^\s\-][^\n]*)?\n"
    if form == "vtt":
        return rf"WEBVTT\n(?:\n{cue})*"
    return rf"(?:[1-9][0-9]{{0,3}}\n{cue}(?:\n[1-9][0-9]{{0,3}}\n{cue})*)?"


def segments_schema(seconds: float) -> dict[str, Any]:
    """The JSON schema of ``{"segments": [{"start", "end", "text"}, ...]}``, with times from 0 to a recording's end.

    Times are multiples of 0.01 s, which also bounds how long a number can be.

    Raises:
        ValueError: as ``timed_transcript_grammar``.
    """
    last = _units(seconds, 2) / 100
    time = {"type": "number", "minimum": 0, "maximum": last, "multipleOf": 0.01}
    segment = {"start": time, "end": time, "text": {"type": "string"}}
    return _object({"segments": {"type": "array", "items": _object(segment)}})


def time_within(seconds: float, form: Form) -> str:
    """The expression of all times of a form from 0 to the last that is not after ``seconds``, and of no others."""
    if form not in ("srt", "vtt", "brackets"):
        raise ValueError(f"unknown form {form!r}; there are srt, vtt and brackets")
    digits = 1 if form == "brackets" else 3
    whole, fraction = divmod(_units(seconds, digits), 10**digits)
    minutes, last = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    point = "," if form == "srt" else r"\."
    fields = [(":", minutes, 59, 2), (":", last, 59, 2), (point, fraction, 10**digits - 1, digits)]
    if form == "brackets":
        fields = [("", hours, 99, 0), *fields] if hours else [("", minutes, 59, 0), *fields[1:]]
    else:
        fields = [("", hours, 99, 2), *fields]
    return _within(fields)


def whole_within(last: int, width: int = 0) -> str:
    """The expression of the whole numbers from 0 to ``last``: of ``width`` digits, or without zeros before them."""
    digits = f"{last:0{width}d}" if width else str(last)
    if len(digits) == 1:
        return f"[0-{digits}]" if last else "0"
    found = [] if width else [whole_within(9), *(f"[1-9][0-9]{{{n - 1}}}" for n in range(2, len(digits)))]
    for place, digit in enumerate(digits):
        low = 0 if width or place else 1
        if int(digit) > low:
            rest = len(digits) - place - 1
            found.append(digits[:place] + f"[{low}-{int(digit) - 1}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    return "(?:" + "|".join([*found, digits]) + ")"


def _within(fields: list[tuple[str, int, int, int]]) -> str:
    """Numbers one after another that are together at most their limits: (what is before, limit, largest, digits)."""
    (before, limit, _, width), *rest = fields
    if not rest:
        return before + whole_within(limit, width)
    at_limit = before + (f"{limit:0{width}d}" if width else str(limit)) + _within(rest)
    if not limit:
        return at_limit
    free = "".join(mark + whole_within(most, digits) for mark, _, most, digits in rest)
    return f"(?:{before}{whole_within(limit - 1, width)}{free}|{at_limit})"


def _units(seconds: float, digits: int) -> int:
    """The last unit of so many digits that is not after ``seconds``."""
    if not 0 <= seconds < 99 * 3600:
        raise ValueError(f"a recording of 0 to {99 * 3600} seconds is expected, got {seconds}")
    return math.floor(round(seconds * 10**digits, 6))


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
