"""Whether the times that a text states can be right: within the recording, in order, and where something is heard."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.infer.stated_times import StatedTime
from afn_model.infer.timestamps import PAST_END

Status = Literal["ok", "past_end", "reversed", "order", "silent", "rate", "grid", "ambiguous"]
STATUSES: tuple[Status, ...] = ("ok", "past_end", "reversed", "order", "silent", "rate", "grid", "ambiguous")
AROUND = 0.5  # seconds to either side of a moment that are looked at
FASTEST = 25.0  # characters that can be said in a second
GRID = 30.0  # seconds of the encoder's window
FRAME = SAMPLE_RATE // 50
AVERAGED = 3  # frames whose power is averaged
DIGITAL_SILENCE = -80.0  # dBFS that no microphone is below
SIGMAS = 4.5  # half an hour of Gaussian levels, 30,000 of them independent, has one above this in 10 % of cases
MOST_SENTENCE = 400  # characters to either side
_QUOTES = re.compile(r"“([^”\n]{1,400})”|\"([^\"\n]{1,400})\"|«([^»\n]{1,400})»")
_AROUND_WORDS, _NO_WORDS = re.compile(r"<[^>]{0,12}>"), " \t\r\n()[]<>|:;-–—*\"“”'"
_NAMED = re.compile(
    r"\b(?:recording|audio|clip|track|file|sound|sample)s?[ #-]{0,2}(?P<number>\d{1,2})\b(?![:.]\d)"
    r"|\b(?P<word>first|second|third|fourth|fifth|sixth|1st|2nd|3rd|4th|5th|6th|last)"
    r"[ ](?:recording|audio|clip|track|file|sound|sample)\b",
    re.IGNORECASE,
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_STOP = re.compile(r"[.!?](?=[\s\"”')*]|$)|\n")


@dataclass(frozen=True)
class CheckedTime:
    """A stated time, and whether it can be right.

    Args:
        time: what is stated.
        status: "ok"; "past_end", more than 0.5 s behind the recording's end; "reversed", an end before its start;
            "order", in a transcript, a start before the one before it; "silent", where nothing is above the noise;
            "rate", more said in a span than can be; "grid", one of several that are all multiples of 30 s; "ambiguous",
            where there are several recordings and the text names none.
        recording: which one is meant, from 0; None where that is not known.
    """

    time: StatedTime
    status: Status
    recording: int | None = None

    def to_json(self) -> dict[str, Any]:
        """``start``, ``end``, ``text``, ``where``, ``span``, ``status`` and ``recording``."""
        time = self.time
        row: dict[str, Any] = {"start": time.start, "end": time.end, "text": time.text, "where": time.where}
        return row | {"span": list(time.span), "status": self.status, "recording": self.recording}


class Loudness:
    """Levels of a recording every 20 ms, and the level that its background stays below.

    level[i] = 10 log10(mean power of frames i, i + 1, i + 2), frames of 20 ms; dB, 0 is full scale
    threshold = m + max(3, 4.5 σ)

    The background is the quietest mode of the levels that at least a tenth of them lie within 3 dB of, at level m; σ is
    the root mean square distance of the levels below m from it. Where there is none, or the threshold is more than half
    of the way (in dB) from m to the 99.5 % level, the recording has no background to tell from what is heard, such as
    music without pauses; only digital silence is silent then.

    Args:
        pcm: [n] at 16 kHz, float32 in [-1, 1] or int16.
    """

    def __init__(self, pcm: Tensor | np.ndarray):
        samples = pcm.detach().cpu().numpy() if isinstance(pcm, Tensor) else pcm
        if samples.ndim != 1 or samples.dtype not in (np.float32, np.int16):
            raise ValueError(f"[n] samples of float32 or int16 are expected, got {samples.dtype} {list(samples.shape)}")
        self.seconds = len(samples) / SAMPLE_RATE
        power = _powers(samples)
        if len(power) >= AVERAGED:
            power = (power[2:] + power[1:-1] + power[:-2]) / AVERAGED
        self.levels = 10 * np.log10(np.maximum(power, 1e-12))
        self.threshold = _threshold(self.levels)

    def is_silent(self, start: float, end: float) -> bool:
        """Whether no level in the seconds from ``start`` to ``end`` is above the threshold; False of no seconds."""
        first = max(0, round(start * 50) - 1)
        last = min(max(first + 1, round(end * 50) - 1), len(self.levels))
        return first < last and bool(self.levels[first:last].max() <= self.threshold)


def check_times(
    times: Sequence[StatedTime],
    text: str,
    recordings: Sequence[Loudness | Tensor | np.ndarray],
    *,
    kind: Literal["answer", "transcript"] = "answer",
) -> list[CheckedTime]:
    """What is wrong with stated times, as far as the recordings say it without a model. The text stays as it is.

    Args:
        times: of the text (``stated_times``).
        text: which they are from.
        recordings: of the prompt, in order: [n] samples at 16 kHz (float32 or int16), or ``Loudness`` of them, worth
            keeping for the next answer.
        kind: in a "transcript" starts must not go back, and what stands behind a time is said from then on.

    Returns:
        one for each time; of several things that are wrong with it, the first in the order past_end, reversed, order,
        ambiguous, silent, rate, grid.
    """
    heard = [one if isinstance(one, Loudness) else Loudness(one) for one in recordings]
    meant = [_meant(text, one, len(heard)) for one in times]
    found: list[CheckedTime] = []
    latest: dict[tuple[str, int | None], float] = {}
    spoken = _spoken(times, text, kind)
    for number, (one, recording) in enumerate(zip(times, meant, strict=True)):
        of = None if recording is None else heard[recording]
        longest = of.seconds if of is not None else max((one.seconds for one in heard), default=0.0)
        status: Status = "ok"
        if heard and max(one.start, one.end or 0.0) > longest + PAST_END:
            status = "past_end"
        elif one.end is not None and one.end < one.start:
            status = "reversed"
        elif kind == "transcript" and one.start < latest.get((one.where, recording), 0.0):
            status = "order"
        elif of is None and len(heard) > 1:
            status = "ambiguous"
        elif of is not None and _is_silent(of, one):
            status = "silent"
        elif _too_fast(spoken[number]):
            status = "rate"
        if status in ("ok", "silent", "rate"):
            latest[one.where, recording] = one.start
        found.append(CheckedTime(one, status, recording))
    return _on_a_grid(found)


def sentence_of(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """The characters of the sentence, or the line, that a part of a text stands in; 400 to either side at most."""
    floor = max(0, span[0] - MOST_SENTENCE)
    before = list(_STOP.finditer(text, floor, span[0]))
    first = before[-1].end() if before else floor
    stop = _STOP.search(text, span[1], min(len(text), span[1] + MOST_SENTENCE))
    last = stop.end() if stop else min(len(text), span[1] + MOST_SENTENCE)
    for tag in ("<think>", "</think>", "<answer>"):
        at = text.rfind(tag, first, span[0])
        first = at + len(tag) if at >= 0 else first
    for tag in ("</think>", "</answer>"):
        at = text.find(tag, span[1], last)
        last = at if at >= 0 else last
    while first < span[0] and text[first] in " \n\t\"”')":
        first += 1
    while last > span[1] and text[last - 1].isspace():
        last -= 1
    return first, last


def _powers(samples: np.ndarray) -> np.ndarray:
    """[frames] mean squares of 20 ms each; the end that fills no frame is left out where there is a frame."""
    count = len(samples) // FRAME
    if not count:
        whole = samples.astype(np.float64) / (32768.0 if samples.dtype == np.int16 else 1.0)
        return np.array([np.mean(whole**2)]) if len(whole) else np.zeros(0)
    frames = samples[: count * FRAME].reshape(count, FRAME)
    power = np.empty(count)
    for at in range(0, count, 1024):  # a part that stays in the cache
        part = frames[at : at + 1024].astype(np.float32, copy=False)
        power[at : at + 1024] = np.einsum("ij,ij->i", part, part)
    return power / (FRAME * (32768.0**2 if samples.dtype == np.int16 else 1.0))


def _threshold(levels: np.ndarray) -> float:
    if not len(levels):
        return DIGITAL_SILENCE
    low, high = max(float(levels.min()), DIGITAL_SILENCE), float(np.percentile(levels, 99.5))
    if high <= low:
        return DIGITAL_SILENCE
    counts, edges = np.histogram(np.maximum(levels, low), bins=np.arange(np.floor(low), np.ceil(high) + 2))
    around = np.convolve(counts, np.ones(6), "same")  # within 3 dB
    for number in np.flatnonzero(around >= 0.1 * len(levels)):
        if around[number] == around[max(0, number - 3) : number + 4].max():
            near = levels[np.abs(levels - (edges[number] + 0.5)) <= 4]
            mode = float(np.median(near))
            below = levels[(levels <= mode) & (levels > DIGITAL_SILENCE)]
            sigma = float(np.sqrt(np.mean((below - mode) ** 2))) if len(below) else 0.0
            margin = max(3.0, SIGMAS * sigma)
            return mode + margin if 2 * margin <= high - mode else DIGITAL_SILENCE
    return DIGITAL_SILENCE


def _is_silent(of: Loudness, one: StatedTime) -> bool:
    end = one.start if one.end is None else one.end
    around = AROUND if end - one.start < 2 * AROUND else 0.0
    return of.is_silent(one.start - around, end + around)


def _meant(text: str, one: StatedTime, count: int) -> int | None:
    """The recording that the text names last before a time, or else in its sentence."""
    if count < 2:
        return 0 if count else None
    first, last = sentence_of(text, one.span)
    named = [*_NAMED.finditer(text, max(0, one.span[0] - MOST_SENTENCE), one.span[0])][-1:]
    for match in named or _NAMED.finditer(text, first, last):
        word = (match["word"] or "").lower()
        number = int(match["number"] or re.sub(r"\D", "", word) or 0)
        number = number or (count if word == "last" else _ORDINALS.index(word) + 1)
        return number - 1 if 1 <= number <= count else None
    return None


def _spoken(times: Sequence[StatedTime], text: str, kind: str) -> list[tuple[int, float]]:
    """For each time the characters that are said from its start to its end, and its seconds; (0, 0) where unknown."""
    found = []
    if kind == "transcript":
        for one, following in zip(times, [*times[1:], None], strict=False):
            said = text[one.span[1] : following.span[0] if following else len(text)]
            end = one.end if one.end is not None else following.start if following else None
            words = _AROUND_WORDS.sub("", said).strip(_NO_WORDS)
            above, _, number = words.rpartition("\n")
            words = above.rstrip() if number.isdigit() else words  # of the next cue
            found.append((len(words), end - one.start) if end is not None else (0, 0.0))
        return found
    sentences = [sentence_of(text, one.span) for one in times]
    times_in = Counter(sentences)
    for one, (first, last) in zip(times, sentences, strict=True):
        if one.end is None or times_in[first, last] > 1:
            found.append((0, 0.0))
            continue
        quotes = sum(len(m[1] or m[2] or m[3]) for m in _QUOTES.finditer(text, first, last))
        found.append((quotes, one.end - one.start))
    return found


def _too_fast(said: tuple[int, float]) -> bool:
    characters, seconds = said
    return characters > 0 and seconds > 0 and characters > FASTEST * seconds


def _on_a_grid(found: list[CheckedTime]) -> list[CheckedTime]:
    """Those that are ok become "grid" where all times but 0, at least three, are multiples of 30 s."""
    stated = {value for one in found for value in (one.time.start, one.time.end) if value}
    if len(stated) < 3 or any(value % GRID for value in stated):
        return found
    return [
        CheckedTime(one.time, "grid", one.recording) if one.status == "ok" and (one.time.start or one.time.end) else one
        for one in found
    ]
