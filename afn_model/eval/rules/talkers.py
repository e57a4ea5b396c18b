"""Who says what, and when: word errors under the best assignment of speakers (cpWER), and diarisation errors (DER)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from afn_model.eval.items import AnsweredItem
from afn_model.eval.score import Part, Score, Tools, ratio
from afn_model.infer.stated_times import stated_times
from afn_model.infer.timestamps import time_marks
from afn_model.infer.transcripts import estimated, speaker_in, timed

# How a label may be written: in brackets anywhere, or bare with a colon at the beginning of a line.
_LABEL = re.compile(r"\[(?:Speaker[ _]?|S)(\d+)\]:?[ \t]*|^[ \t]*(?:Speaker[ _]|S)(\d+):[ \t]*", re.MULTILINE)
_TURN = re.compile(r"\[Speaker (\d+)\]")
_BEFORE_TURN = re.compile(r"(?=\[Speaker \d)")
_SECONDS = r"(\d+\.\d+)[ ]?s?"
# Behind a label a pair of numbers with a point is a time.
_SPAN = re.compile(rf"(\[Speaker \d+\][ ]){_SECONDS}[ ]?(?:-|–|—|to)[ ]?{_SECONDS}(?![\w.:]):?[ \t]*")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


DUST = 1e-9  # seconds that sums in another order differ by


class Span(NamedTuple):
    """Somebody speaks from ``start`` to ``end`` seconds."""

    speaker: str
    start: float
    end: float


def words_of(text: str) -> str:
    """Lower case, no punctuation but apostrophes within words, single spaces. Languages without spaces stay whole."""
    return " ".join(_WORD.findall(text.lower().replace("’", "'")))


def plain(text: str) -> str:
    """An answer in the form that the engine's own readers of transcripts know: ``[Speaker 1] [0.0 - 3.2] good day``."""
    said = _LABEL.sub(lambda found: f"[Speaker {found[1] or found[2]}] ", text.replace("**", ""))
    return _SPAN.sub(r"\1[\2 - \3] ", said)


def turns_in(text: str, seconds: float) -> tuple[list[tuple[Span, str]], bool]:
    """What each speaker says, in the order of the answer, as the server's diarized_json reads it; what stands before
    the first label is of speaker 1.

    Args:
        text: an answer.
        seconds: of the recording.
    Returns:
        (turns, whether their times are the answer's; otherwise each has the share of time that it has of the
        characters).
    """
    said = plain(text)
    found = timed(said, 0.0, seconds)
    stated = found.status == "model"
    turns, speaker = [], "1"
    for one in found.segments if stated else estimated(said, 0.0, seconds, turns=True):
        start = one.start
        for piece in filter(None, _BEFORE_TURN.split(one.text)):
            number, words = speaker_in(piece)
            speaker = speaker if number is None else str(number)
            turns.append((Span(speaker, start, one.end), words))
            start = one.end  # a turn without a time behind one that has one
    return turns, stated


def spans_in(text: str, seconds: float) -> list[Span]:
    """Who speaks when, by the times that an answer states, in whatever order; none where it states none.

    Times and labels go together in either order, ``[Speaker 1] 0.0-3.2`` or ``[0:00 - 0:03] Speaker 1:``, and a label
    may have several times. A time before the first label of an answer that names labels first is of speaker 1.
    """
    turns, stated = turns_in(text, seconds)
    said = plain(text)
    times = [one for one in stated_times(said, seconds) if one.end is not None and one.end > one.start]
    if stated and len(turns) >= max(len(time_marks(said)), len(times)):
        return [span for span, _ in turns if span.end > span.start]
    labels = [(found.start(), found[1]) for found in _TURN.finditer(said)]
    spans = list[Span]()
    before = bool(times and labels) and times[0].span[0] < labels[0][0]
    for one in times:
        place = bisect_right(labels, (one.span[0], "")) - (not before)
        speaker = labels[min(place, len(labels) - 1)][1] if labels and place >= 0 else "1"
        spans.append(Span(speaker, one.start, float(one.end or 0.0)))
    return spans


def cpwer(answered: Sequence[AnsweredItem], tools: Tools, *, sot: bool = False) -> Score:
    """Word errors in percent of the reference's words, over all items.

    cpWER (concatenated minimum-permutation): all words of a speaker, in order of time, are one stream; streams of the
    answer are assigned to those of the reference, one to one, so that the errors are fewest; what has no partner is
    missed or inserted whole. An item without an output is all deletions.

    Args:
        answered, tools: as of every rule; items have ``extra["segments"]``.
        sot: one stream of all segments by their start (serialised output) against the answer's words in its order:
            who speaks does not count, but the order does. Labels are no words.

    Source: Watanabe et al. 2020 (CHiME-6), as fgnt/meeteval computes it; Kanda et al. 2020 (serialised output).
    """
    import meeteval

    wer: Any = meeteval.wer
    parts: list[Part | None] = []
    counted, unparsed, missed, extra = [0, 0, 0], 0, 0, 0
    for one in answered:
        segments = one.item.extra.get("segments")
        if segments is None:
            parts.append(None)
            continue
        turns = turns_in(one.text or "", one.item.extra["seconds"])[0]
        said = [(span.speaker, words) for span, words in turns]
        right = [(row["speaker"], row["words"]) for row in sorted(segments, key=lambda row: row["start_time"])]
        unparsed += bool(right) and not any(words_of(words) for _, words in said)
        if sot:
            found = wer.siso_word_error_rate(*(words_of(" ".join(w for _, w in some)) for some in (right, said)))
        else:
            streams = _streams(right), _streams(said)
            found = wer.cp_word_error_rate(*streams, reference_sort=False, hypothesis_sort=False)
            missed += max(0, len(streams[0]) - len(streams[1]))
            extra += max(0, len(streams[1]) - len(streams[0]))
        parts.append((float(found.errors), float(found.length)))
        kinds = (found.substitutions, found.deletions, found.insertions)
        counted = [total + kind for total, kind in zip(counted, kinds, strict=True)]
    notes = ["{} substitutions, {} deletions, {} insertions".format(*counted)]
    if not sot:
        notes.append(f"speakers that no stream is left for: {missed}; streams beyond the speakers there are: {extra}")
    kind = "SOT WER, by start" if sot else "cpWER"
    signature = f"{kind}, meeteval {meeteval.__version__}, lower case without punctuation"
    return ratio(answered, parts, scale=100, unparsed=unparsed, signature=signature, notes=notes)


def _streams(turns: Sequence[tuple[str, str]]) -> dict[str, str]:
    found = dict[str, list[str]]()
    for speaker, words in turns:
        if plain_words := words_of(words):
            found.setdefault(speaker, []).append(plain_words)
    return {speaker: " ".join(parts) for speaker, parts in found.items()}


class DiarisationErrors(NamedTuple):
    """Seconds that are scored: missed, false alarm, confusion, and of speech in the reference."""

    missed: float
    false_alarm: float
    confusion: float
    total: float

    @property
    def errors(self) -> float:
        return self.missed + self.false_alarm + self.confusion


def diarisation_errors(
    reference: Sequence[Span],
    hypothesis: Sequence[Span],
    regions: Sequence[tuple[float, float]],
    collar: float = 0.0,
) -> DiarisationErrors:
    """What the time of diarisation errors is made of; where several speak at once, each counts.

    At every moment with n speakers in the reference, m in the hypothesis and c of them the same under the assignment,
    max(0, n - m) are missed, max(0, m - n) are false alarms and min(n, m) - c are confused. The assignment is one to
    one and has the most time in common.

    Args:
        reference, hypothesis: who speaks when.
        regions: that are scored, seconds.
        collar: seconds before and after each start and end of the reference that are not scored.

    Source: NIST's Rich Transcription evaluation (md-eval); equal to pyannote.metrics, whose collar is twice ours.
    """
    from scipy.optimize import linear_sum_assignment

    bounds = [bound for span in reference for bound in span[1:]]
    collars = [(bound - collar, bound + collar) for bound in bounds] if collar else []
    spans = [*(span[1:] for span in (*reference, *hypothesis)), *regions, *collars]
    edges = np.unique(np.array(spans, dtype=np.float64).reshape(-1))
    if len(edges) < 2:
        return DiarisationErrors(0.0, 0.0, 0.0, 0.0)

    def marked(some: Sequence[tuple[float, float]]) -> np.ndarray:
        found = np.zeros(len(edges) - 1, dtype=bool)
        for start, end in some:
            found[np.searchsorted(edges, start) : np.searchsorted(edges, end)] = True
        return found

    def active(some: Sequence[Span]) -> np.ndarray:
        speakers = dict.fromkeys(span.speaker for span in some)
        rows = [marked([span[1:] for span in some if span.speaker == speaker]) for speaker in speakers]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(edges) - 1)

    seconds = np.diff(edges) * (marked(regions) & ~marked(collars))
    right, said = active(reference), active(hypothesis)
    common = (right * seconds) @ said.T
    same = common[linear_sum_assignment(common, maximize=True)].sum()
    n, m = right.sum(0), said.sum(0)
    missed, false_alarm, both = (
        float((some * seconds).sum()) for some in (np.maximum(n - m, 0), np.maximum(m - n, 0), np.minimum(n, m))
    )
    confusion = both - float(same)
    return DiarisationErrors(missed, false_alarm, confusion if confusion > DUST else 0.0, float((n * seconds).sum()))


def der(answered: Sequence[AnsweredItem], tools: Tools, *, collar: float = 0.0, estimate: bool = False) -> Score:
    """Diarisation error rate in percent: seconds missed, falsely found and of the wrong speaker, over the seconds of
    speech in the reference, of all items together; overlapping speech is scored.

    Args:
        answered, tools: as of every rule; items have ``extra["segments"]``, ``["seconds"]`` and maybe ``["regions"]``.
        collar: as of ``diarisation_errors``.
        estimate: an answer that states no times has estimated ones: of the recording's length each turn has the share
            that it has of the characters, as in the server's diarized_json. Without it all speech is missed.
    """
    parts: list[Part | None] = []
    sums, unparsed, guessed = np.zeros(4), 0, 0
    for one in answered:
        segments = one.item.extra.get("segments")
        if segments is None:
            parts.append(None)
            continue
        seconds = one.item.extra["seconds"]
        spans = spans_in(one.text or "", seconds)
        if not spans and estimate:
            turns, stated = turns_in(one.text or "", seconds)
            spans = [] if stated else [span for span, _ in turns]
            guessed += bool(spans)
        unparsed += bool(segments) and not spans
        regions = one.item.extra.get("regions") or [(0.0, seconds)]
        found = diarisation_errors([_span(row) for row in segments], spans, regions, collar)
        sums += np.array(found)
        parts.append((found.errors, found.total))
    shares = 100 * sums[:3] / sums[3] if sums[3] else np.full(3, np.nan)
    kinds = "missed {:.1f} %, false alarm {:.1f} %, confusion {:.1f} %".format(*shares)
    notes = [f"{kinds} of {sums[3]:.1f} s of speech that are scored"]
    if guessed:
        notes.append(f"{guessed} answers state no times: theirs are estimated from the length of the text")
    signature = f"DER, collar {collar:g} s on each side, overlap scored, optimal assignment"
    return ratio(answered, parts, scale=100, unparsed=unparsed, signature=signature, notes=notes)


def _span(row: Mapping[str, Any]) -> Span:
    return Span(row["speaker"], row["start_time"], row["end_time"])
