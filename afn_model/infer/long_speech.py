"""Recordings longer than a window of the speech decoder: where windows are cut, and one text of all of theirs.

A window ends at the first pause of its last fifth. Where there is none the next window begins before it ends; what both
heard is written once, and the words at the edges, of which one of them heard a part, are the other's. Recordings that
are there at once and those that are still coming have the same windows: a cut depends on nothing behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from torch import Tensor

from afn_model.audio.frames import HOP, MIN_SAMPLES, SAMPLE_RATE
from afn_model.infer.speech_writer import Written
from afn_model.infer.timestamps import Segment
from afn_model.infer.word_times import TimedWord, is_spaced

Key = TypeVar("Key")
Write = Callable[..., list[Written | ValueError]]  # as of ``SpeechWriter``
LONGEST = 30.0  # seconds of a window
PAUSE = 0.2  # seconds
QUIET = 0.02  # power of a pause to the mean power of its window before it: 17 dB less
FIRST = 0.8  # share of a window after which it may end at a pause
SHARED = 2 / 15  # share of a window that the next one hears too, where there was no pause: 4 s of 30
EDGE = 1 / 30  # share of a window at such an edge whose words are left to the other window
APART = 1.0  # seconds between two times of one word, at most
LINE = 84  # characters of a segment of words: two lines of 42


@dataclass(frozen=True)
class SpeechWindow:
    """[start, end) of a window in samples, and where the next one begins: before ``end`` where there was no pause."""

    start: int
    end: int
    following: int


@dataclass
class LongText:
    """What is said in a recording.

    Args:
        text: all of it.
        segments: what each window says, in seconds.
        words: where they were asked for.
        written: what each window gave, of which ``circles`` were cut before a loop.
    """

    text: str = ""
    segments: list[Segment] = field(default_factory=list)
    words: list[TimedWord] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)

    @property
    def circles(self) -> int:
        return sum(one.finish == "repetition" for one in self.written)

    @property
    def finish(self) -> str:
        return next((one.finish for one in self.written if one.finish != "stop"), "stop")


def next_window(pcm: Tensor, start: int, longest: float = LONGEST) -> SpeechWindow | None:
    """The window that begins at ``start``; None where its end depends on what comes behind ``pcm``.

    Args:
        pcm: [n] samples at 16 kHz, as far as they are there.
        start: in samples.
        longest: seconds of a window.
    """
    most, pause = round(longest * SAMPLE_RATE) // HOP, round(PAUSE * SAMPLE_RATE) // HOP
    first = round(FIRST * most)
    power = pcm[start : start + most * HOP].double()
    power = power[: len(power) // HOP * HOP].square().view(-1, HOP).sum(1)
    if len(power) >= first + pause:
        before = power.cumsum(0)
        pauses = power[first:].unfold(0, pause, 1).mean(1)
        means = before[first - 1 : first - 1 + len(pauses)] / (first + power.new_tensor(range(len(pauses))))
        quiet = (pauses <= QUIET * means).nonzero()
        if len(quiet):
            end = start + (first + int(quiet[0]) + pause // 2) * HOP
            return SpeechWindow(start, end, end)
    if len(pcm) - start <= most * HOP:
        return None
    end = start + most * HOP
    return SpeechWindow(start, end, end - round(SHARED * most) * HOP)


def windows_of(pcm: Tensor, longest: float = LONGEST) -> list[SpeechWindow]:
    """The windows of a whole recording; a rest that is too short for a token is left out."""
    found, start = list[SpeechWindow](), 0
    while (one := next_window(pcm, start, longest)) is not None:
        found.append(one)
        start = one.following
    if len(pcm) - start >= MIN_SAMPLES or not found:
        found.append(SpeechWindow(start, len(pcm), len(pcm)))
    return found


class JoinedWindows:
    """The words of windows one after another, each once.

    Args:
        longest: seconds of a window.
    """

    def __init__(self, longest: float = LONGEST):
        self.longest = longest
        self.before: list[TimedWord] = []  # of the last window
        self.heard = 0.0  # seconds at which the last window ended, where this one has begun before that

    def fresh(self, words: Sequence[TimedWord], start: float, end: float | None = None) -> list[TimedWord]:
        """Of the words of a window those that no window before has, nor the one behind hears better.

        Args:
            words: in seconds of the recording, from the beginning of the window on.
            start: of the window in seconds.
            end: at which it ends without a pause.
        """
        edge = EDGE * self.longest
        kept = [one for one in words if end is None or one.end <= end - edge]
        if start >= self.heard:
            return kept
        kept = [one for one in kept if one.start >= start + edge]
        return kept[doubled(self.before, kept, self.heard) :]

    def close(self, words: Sequence[TimedWord], end: float, following: float) -> None:
        """The window is over; ``words`` of it have been taken."""
        self.before = [one for one in (*self.before, *words) if one.end > following]
        self.heard = end if following < end else 0.0


def doubled(before: Sequence[TimedWord], words: Sequence[TimedWord], heard: float) -> int:
    """How many words at the beginning of a window those before have already.

    The longest run of words that both have, nearest in time, says where they meet. Behind it, and where there is no such
    run, words are taken for others' where their middle lies before the end of the last word before.

    Args:
        before: words of the window before, from the beginning of this one on.
        words: of this window.
        heard: seconds up to which the window before has heard.
    """
    ours, theirs = [_plain(one.text) for one in before], [_plain(one.text) for one in words if one.start < heard]
    best = (0, 0.0, 0, 0)  # length, -seconds apart, end in before, end in words
    lengths = [0] * (len(theirs) + 1)
    for i, word in enumerate(ours, 1):
        row = [0] * (len(theirs) + 1)
        for j, other in enumerate(theirs, 1):
            if word == other:
                row[j] = lengths[j - 1] + 1
                apart = abs(before[i - 1].start - words[j - 1].start)
                if row[j] > 1 or apart <= APART:
                    best = max(best, (row[j], -apart, i, j))
        lengths = row
    _, _, met, skipped = best
    if met < len(before):
        while skipped < len(words) and (words[skipped].start + words[skipped].end) / 2 < before[-1].end:
            skipped += 1
    return skipped


def said(words: Iterable[TimedWord]) -> str:
    """The text of words."""
    return "".join(f"{' ' * one.spaced}{one.text}" for one in words).strip()


def placed_words(words: Iterable[TimedWord], start: float) -> list[TimedWord]:
    """Words of a window that begins at ``start``, in seconds of the recording."""
    return [replace(one, start=one.start + start, end=one.end + start) for one in words]


def segments_of_words(words: Sequence[TimedWord]) -> list[tuple[Segment, list[TimedWord]]]:
    """Words as segments: up to the end of a sentence, a pause of a second, or ``LINE`` characters."""
    groups: list[list[TimedWord]] = []
    for one in words:
        last = groups[-1] if groups else []
        whole = not last or last[-1].text[-1] in ".!?。！？" or one.start - last[-1].end >= 1.0
        if whole or len(said([*last, one])) > LINE:
            groups.append([one])
        else:
            last.append(one)
    return [(Segment(group[0].start, group[-1].end, said(group)), group) for group in groups]


@dataclass
class _Waiting(Generic[Key]):
    key: Key
    windows: list[SpeechWindow]
    found: list[Written | ValueError | None]


def long_texts(
    write: Write,
    recordings: Iterable[tuple[Key, Tensor | ValueError]],
    *,
    longest: float = LONGEST,
    words: bool = False,
    batch: int = 8,
) -> Iterator[tuple[Key, LongText | ValueError]]:
    """The texts of recordings, in their order; windows of several are heard together.

    Args:
        write: a ``SpeechWriter``.
        recordings: (whatever names it, [n] samples at 16 kHz or why there are none).
        longest: seconds of a window.
        words: whether word times are wanted.
        batch: windows together, at most.

    Raises:
        ValueError: a batch without windows.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    waiting: list[_Waiting[Key]] = []
    pieces: list[tuple[_Waiting[Key], int, Tensor]] = []

    def flush(least: int) -> None:
        while len(pieces) >= least:
            some = pieces[:batch]
            del pieces[:batch]
            overlaps = any(w.following < w.end for one, _, _ in some for w in one.windows)
            texts = write([pcm for _, _, pcm in some], words=words or overlaps)
            for (one, place, _), text in zip(some, texts, strict=True):
                one.found[place] = text

    def complete() -> Iterator[tuple[Key, LongText | ValueError]]:
        while waiting and None not in waiting[0].found:
            one = waiting.pop(0)
            yield one.key, _joined(one.windows, one.found, longest, words)  # type: ignore[arg-type]

    for key, pcm in recordings:
        if isinstance(pcm, ValueError):
            waiting.append(_Waiting(key, [], [pcm]))
        else:
            windows = windows_of(pcm, longest)
            one = _Waiting[Key](key, windows, [None] * len(windows))
            waiting.append(one)
            pieces += [(one, place, pcm[w.start : w.end]) for place, w in enumerate(windows)]
        flush(batch)
        yield from complete()
    flush(1)
    yield from complete()


def _joined(
    windows: Sequence[SpeechWindow], found: Sequence[Written | ValueError], longest: float, words: bool
) -> LongText | ValueError:
    whole, joined = LongText(), JoinedWindows(longest)
    for one in found:
        if isinstance(one, ValueError):
            return one
        whole.written.append(one)
    for window, one in zip(windows, whole.written, strict=True):
        start, end, following = (at / SAMPLE_RATE for at in (window.start, window.end, window.following))
        its_words = placed_words(one.words, start)
        fresh = joined.fresh(its_words, start, end if following < end else None)
        text = one.text.strip() if len(fresh) == len(its_words) else said(fresh)
        joined.close(fresh, end, following)
        whole.words += fresh if words else []
        if text:
            whole.segments.append(Segment(start, end, text))
            whole.text += " " * bool(whole.text and is_spaced(text)) + text
    return whole
