"""Transcripts of recordings that are asked about in pieces: how long a piece may be, and what all their answers say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from afn_model.infer.timestamps import Segment, Timed, read_times, shift_times, time_marks
from afn_model.scoring.text import answer_in

if TYPE_CHECKING:
    from afn_model.prompt.conversation import Turn
    from afn_model.prompt.processor import AFNextProcessor

TOKENS_A_SECOND = 25  # of audio
SPOKEN = 6  # tokens a second that a transcript may have: fast speech has about 5
LEAST = 1024  # tokens that a transcript may have, however short the recording
LINE = 84  # characters of an estimated segment at most: two lines of 42, as subtitles have them
_SPEAKER = re.compile(r"\[?(?:Speaker[ _]|S)(\d+)\]?:?[ \t]*")
_LABEL = r"(?=\[Speaker[ _]\d+\])"
_TURN = re.compile(_LABEL)
_SENTENCE = re.compile(rf"""[.!?…]+["'”’)\]]*\s+|[。！？]+\s*|\n+|{_LABEL}""")


def longest_piece(
    processor: AFNextProcessor, turns: Sequence[Turn], max_new_tokens: int, *, spoken: bool = False
) -> float:
    """Seconds of a recording that the model takes at once, with room for the answer; less than 1 where nothing fits.

    Args:
        processor: of the model.
        turns: the question, with a recording of any length.
        max_new_tokens: of the answer; a quarter of the context is kept for it at most.
        spoken: whether the answer is a transcript, whose length is that of the recording.
    """
    fits = processor.max_seconds
    if processor.max_positions is not None:
        room = processor.max_positions - processor.text_tokens(list(turns))
        answer = min(max_new_tokens, processor.max_positions // 4)
        fits = min(fits, (room - answer) / TOKENS_A_SECOND)
        if spoken:
            fits = min(fits, room / (TOKENS_A_SECOND + SPOKEN))
    return fits


def transcript_tokens(seconds: float) -> int:
    """Tokens that a transcript of so many seconds may have."""
    return max(LEAST, math.ceil(SPOKEN * seconds))


def placed(text: str, start: float, end: float) -> str:
    """The answer about a piece, in seconds of its recording; times in it that can be right count from the beginning of
    the recording."""
    right = start and read_times(text, end - start).status == "model"
    return shift_times(text, start) if right else text


def timed(text: str, start: float, end: float) -> Timed:
    """What ``read_times`` finds in the answer about a piece, in seconds of its recording."""
    found = read_times(text, end - start)
    return replace(found, segments=[replace(s, start=s.start + start, end=s.end + start) for s in found.segments])


def estimated(text: str, start: float, end: float, *, turns: bool = False) -> list[Segment]:
    """Segments of the answer about a piece that carries no usable times: each has the share of the time that it has of
    the characters. Times that cannot be right are no part of a segment's text; what stands between two is one segment.

    Args:
        text: of the answer.
        start, end: of the piece, in seconds of its recording.
        turns: a segment is what one speaker says, up to the next label; otherwise a sentence, or as much of it as
            ``LINE`` characters hold.
    """
    said = answer_in(text)
    before = max(0, text.rfind(said))
    marks = {first: (last, who) for first, last, who in time_marks(said)}
    cuts = {m.end() for m in (_TURN if turns else _SENTENCE).finditer(said)}
    if marks:
        cuts = set(marks)
    bounds = sorted({0, *cuts, len(said)})
    rows = list[tuple[str, tuple[int, int]]]()
    for a, b in pairwise(bounds):
        for first, last in [(a, b)] if turns else _lines(said, a, b):
            behind, who = marks.get(first, (first, ""))
            words = f"{who} {said[behind:last].strip()}".strip()
            if words:
                rows.append((words, (before + first, before + last)))
    found, total, past = list[Segment](), sum(len(words) for words, _ in rows), 0
    for words, span in rows:
        first, last = (start + (end - start) * share / total for share in (past, past + len(words)))
        found.append(Segment(first, min(last, end), words, span))
        past += len(words)
    return found


def speaker_in(text: str) -> tuple[int | None, str]:
    """(number of the speaker that a segment begins with, what is said); None where it names none."""
    found = _SPEAKER.match(text)
    return (int(found[1]), text[found.end() :].strip()) if found else (None, text.strip())


def _lines(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans of at most ``LINE`` characters, cut between words where there are any."""
    spans = []
    while len(text[start:end].rstrip()) > LINE:
        space = text.rfind(" ", start + 1, start + LINE + 1)
        cut = start + LINE if space < 0 else space + 1
        spans.append((start, cut))
        start = cut
    return [*spans, (start, end)]
