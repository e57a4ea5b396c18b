"""Who says which words, what is said once, and who interrupts whom: from words with times and turns of speakers."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from afn_model.curate.texts import words_of

MINE, OTHERS = 0.5, 0.2  # share of a word that its speaker's turns have at least, and any other's at most
NEAR = 1.0  # seconds around a turn in which a word of no turn may be its speaker's
APART = 0.2  # seconds between the first words of two speakers, so that it is plain who is heard first
SHORT = 0.7  # seconds of a turn that may be no more than "mm-hm"
BEFORE, TOGETHER = 0.5, 0.2  # seconds that one speaks before the other begins, and that both speak at least
STOPS, RESUMES = 1.0, 2.0  # seconds within which who is interrupted stops, or goes on after the other
MOMENT = 1e-3  # seconds of a word without length
PAUSE = 0.6  # seconds between two words that an utterance does not go over
_SENTENCE = (".", "?", "!", "…", "。", "？", "！", "؟", "।")
_QUOTES = str.maketrans(dict.fromkeys('"“”„«»', None))
_SOLID = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "FULLWIDTH", "IDEOGRAPHIC")


@dataclass(frozen=True)
class TalkTurn:
    """Somebody speaks; ``begins`` and ``ends`` say whether the turn has its own edges, or those of a part."""

    speaker: str
    start: float
    end: float
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True)
class TalkWord:
    """A word with its time in seconds."""

    text: str
    start: float
    end: float
    whole: bool = True


@dataclass(frozen=True)
class Utterance:
    """Words of one speaker in a row, with their places in the conversation's words."""

    speaker: str
    first: int
    last: int
    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Interruption:
    """At ``start`` seconds ``by`` begins to speak into the words of ``of``; ``sure`` unless it may be none."""

    by: str
    of: str
    start: float
    sure: bool = True


@dataclass(frozen=True)
class Conversation:
    """Words and turns of a recording or of a part of it, both by time, in seconds from its beginning.

    Args:
        words: as a recogniser heard them.
        turns: of speakers; those of one speaker neither overlap nor touch.
        seconds: of the whole.
    """

    words: tuple[TalkWord, ...]
    turns: tuple[TalkTurn, ...]
    seconds: float

    @cached_property
    def speakers(self) -> tuple[str, ...]:
        """In the order in which they are first heard."""
        return tuple(dict.fromkeys(one.speaker for one in self.turns))

    @cached_property
    def ordered(self) -> bool:
        """Whether it is plain in which order speakers are first heard."""
        first: dict[str, float] = {}
        for one in self.turns:
            first.setdefault(one.speaker, one.start)
        starts = sorted(first.values())
        return all(later - earlier >= APART for earlier, later in pairwise(starts))

    @cached_property
    def owners(self) -> tuple[str, ...]:
        """The speaker of each word; "" where it is not plainly one's."""
        return tuple(self._owner(word) for word in self.words)

    @cached_property
    def doubtful(self) -> frozenset[str]:
        """Speakers of whom it is not known what all they say: a word may be theirs or another's, or a turn longer than
        a "mm-hm" has no word."""
        found: set[str] = set()
        for word, owner in zip(self.words, self.owners, strict=True):
            if not owner:
                shares = self._shares(word)
                near = [one.speaker for one in self._between(word.start - NEAR, word.end + NEAR)]
                found.update([name for name, share in shares.items() if share > OTHERS] or near)
        owned = list(zip(self.words, self.owners, strict=True))
        for one in (one for one in self.turns if one.end - one.start >= SHORT and one.speaker not in found):
            if not any(who == one.speaker and said.start < one.end and said.end > one.start for said, who in owned):
                found.add(one.speaker)
        return frozenset(found)

    def said_by(self, speaker: str) -> str:
        """All words that are plainly a speaker's."""
        return spelled([word.text for word, owner in zip(self.words, self.owners, strict=True) if owner == speaker])

    def utterances(self, least: int, most: int) -> list[Utterance]:
        """Runs of ``least`` to ``most`` words that one speaker says in one turn, with nobody else speaking, and that
        are said once in the whole; they end with a sentence or a pause, or at ``most`` words."""
        runs: list[list[int]] = []
        for at, word in enumerate(self.words):
            turn = self._alone(at)
            if turn is None:
                continue
            last = runs[-1][-1] if runs else -2
            follows = last == at - 1 and self._alone(last) == turn and word.start - self.words[last].end <= PAUSE
            if follows and len(runs[-1]) < most and not self.words[last].text.endswith(_SENTENCE):
                runs[-1].append(at)
            else:
                runs.append([at])
        found = []
        for run in runs:
            text = spelled([self.words[at].text for at in run]).translate(_QUOTES).strip(" ,;:-–—")
            if len(run) >= least and self.times_said(run[0], run[-1]) == 1:
                start, end = self.words[run[0]].start, self.words[run[-1]].end
                found.append(Utterance(self.owners[run[0]], run[0], run[-1], text, start, end))
        return found

    def times_said(self, first: int, last: int) -> int:
        """How often the words from ``first`` to ``last`` are said in this order: one after another, or within twice
        their time with others' words between them. Case and punctuation do not count."""
        sought = [token for at in range(first, last + 1) for token in self._tokens[at]]
        flat = [(token, at) for at, tokens in enumerate(self._tokens) for token in tokens]
        limit = 2 * (self.words[last].end - self.words[first].start)
        return sum(self._follows(sought, flat, at, limit) for at in range(len(flat)) if sought)

    def interruptions(self) -> list[Interruption]:
        """Who begins while another speaks, who then stops within a second, or soon goes on after the first.

        Left out is what is plainly none: a short turn while the other goes on, as "mm-hm" is. Not sure are those that
        begin together with the other or when the other is about done, short ones at which the other stops, long ones
        while the other never stops, those into the words of two, and what the edge of a part cuts off.
        """
        found = []
        for at, turn in enumerate(self.turns):
            # Of two that begin together the second one begins into the first one's words.
            into = [one for one in self.turns[:at] if one.speaker != turn.speaker and one.end > turn.start]
            if not into:
                continue
            other = max(into, key=lambda one: one.end)
            goes_on = other.end >= turn.end
            if len(into) == 1 and turn.end - turn.start < SHORT and goes_on and turn.ends:
                continue
            sure = len(into) == 1 and turn.begins and other.ends and not goes_on and turn.end - turn.start >= SHORT
            sure = sure and turn.start - other.start >= BEFORE and other.end - turn.start >= TOGETHER
            sure = sure and (other.end - turn.start <= STOPS or self._resumes(other, turn))
            found.append(Interruption(turn.speaker, other.speaker, turn.start, sure))
        return found

    def part(self, start: float, end: float) -> Conversation:
        """What is between two moments; words at its edges are not whole."""

        def moved(one: TalkWord | TalkTurn) -> tuple[float, float]:
            return round(max(one.start, start) - start, 3), round(min(one.end, end) - start, 3)

        words = [
            TalkWord(one.text, *moved(one), one.whole and start <= one.start and one.end <= end)
            for one in self.words
            if one.start < end and (one.end > start or one.start >= start)
        ]
        turns = [
            TalkTurn(one.speaker, *moved(one), one.begins and one.start >= start, one.ends and one.end <= end)
            for one in self._between(start, end)
        ]
        return Conversation(tuple(words), tuple(turns), round(end - start, 3))

    @cached_property
    def _tokens(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(words_of(word.text)) for word in self.words)

    @cached_property
    def _edges(self) -> tuple[list[float], list[float]]:
        """Where turns start, and the latest end up to each."""
        return [one.start for one in self.turns], list(accumulate((one.end for one in self.turns), max))

    def _between(self, start: float, end: float) -> list[TalkTurn]:
        """Turns that are heard between two moments."""
        starts, ends = self._edges
        return [one for one in self.turns[bisect_right(ends, start) : bisect_left(starts, end)] if one.end > start]

    def _shares(self, word: TalkWord) -> dict[str, float]:
        """Of a word's time what each speaker's turns have; a word without length is a moment."""
        found: dict[str, float] = {}
        for one in self._between(word.start, max(word.end, word.start + MOMENT)):
            if word.end > word.start:
                share = (min(one.end, word.end) - max(one.start, word.start)) / (word.end - word.start)
            else:
                share = 1.0
            found[one.speaker] = found.get(one.speaker, 0.0) + share
        return found

    def _owner(self, word: TalkWord) -> str:
        shares = self._shares(word)
        first = max(shares, key=lambda name: shares[name], default="")
        alone = all(share <= OTHERS for name, share in shares.items() if name != first)
        return first if word.whole and first and shares[first] >= MINE and alone else ""

    def _alone(self, at: int) -> TalkTurn | None:
        """The turn that a word is wholly in, where nobody else speaks."""
        word = self.words[at]
        there = self._between(word.start, max(word.end, word.start + MOMENT))
        whole = word.whole and len(there) == 1 and there[0].start <= word.start and word.end <= there[0].end
        return there[0] if whole else None

    def _follows(self, sought: Sequence[str], flat: Sequence[tuple[str, int]], at: int, limit: float) -> bool:
        if flat[at][0] != sought[0]:
            return False
        latest, found = self.words[flat[at][1]].start + limit, 0
        for count, (token, place) in enumerate(flat[at:], 1):
            found += token == sought[found]
            if found == len(sought):
                return True
            if found < count and self.words[place].start > latest:
                return False
        return False

    def _resumes(self, other: TalkTurn, turn: TalkTurn) -> bool:
        return any(one.speaker == other.speaker and turn.end <= one.start <= turn.end + RESUMES for one in self.turns)


def conversation_of(
    words: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]], seconds: float
) -> Conversation:
    """A conversation from words [{"word", "start", "end"}] and turns [{"speaker", "start", "end"}], in any order."""
    said = [TalkWord(one["word"].strip(), one["start"], one["end"]) for one in words if one["word"].strip()]
    joined: list[TalkTurn] = []
    for one in sorted(turns, key=lambda one: (one["start"], one["end"], str(one["speaker"]))):
        turn = TalkTurn(str(one["speaker"]), one["start"], one["end"])
        same = [
            at for at, earlier in enumerate(joined) if earlier.speaker == turn.speaker and earlier.end >= turn.start
        ]
        if same:
            joined[same[-1]] = replace(joined[same[-1]], end=max(joined[same[-1]].end, turn.end))
        elif turn.end > turn.start:
            joined.append(turn)
    return Conversation(tuple(sorted(said, key=lambda one: (one.start, one.end))), tuple(joined), seconds)


def spelled(words: Sequence[str]) -> str:
    """Words as they are written: with spaces, but none where both are of a script without them."""
    found = ""
    for word in words:
        found += word if not found or (_solid(found[-1]) and _solid(word[:1])) else f" {word}"
    return found


def without_spaces(text: str) -> bool:
    """Whether most of a text is of scripts without spaces, of which characters are counted and no words."""
    letters = [letter for letter in text if letter.isalnum()]
    return 2 * sum(map(_solid, letters)) > len(letters)


def _solid(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_SOLID)
