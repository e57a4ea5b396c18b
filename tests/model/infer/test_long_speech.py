"""Windows and what they say together: a stand-in hears exactly the words of its window, and half words at its edges."""

import random

import pytest
import torch

from afn_model.audio.frames import HOP
from afn_model.infer.long_speech import (
    JoinedWindows,
    doubled,
    long_texts,
    next_window,
    said,
    segments_of_words,
    windows_of,
)
from afn_model.infer.speech_writer import Written
from afn_model.infer.word_times import TimedWord

SECOND = 16_000
VOCABULARY = [f"word{number}" for number in range(60)]


class SpokenScript:
    """A recording of noise with words at known times, and what a perfect listener writes of any part of it."""

    def __init__(self, seconds, seed=0, pauses=(), jitter=0.0, few=60):
        draw = random.Random(seed)
        self.pcm = 0.1 * torch.randn(round(seconds * SECOND), generator=torch.Generator().manual_seed(seed))
        for first, last in pauses:
            self.pcm[round(first * SECOND) : round(last * SECOND)] *= 1e-3
        self.words, self.jitter, at = [], jitter, 0.1
        while at < seconds - 0.7:
            length = draw.uniform(0.15, 0.6)
            rest = next((last for first, last in pauses if first < at + length and at < last), None)
            if rest is not None:
                at = rest
                continue
            self.words.append((draw.choice(VOCABULARY[:few]), at, at + length))
            at += length + draw.choice([0.0, 0.02, 0.05])

    def place(self, pcm):
        """Where a part of the recording begins, in seconds."""
        (found,) = (self.pcm[::HOP] == pcm[0]).nonzero()
        return int(found) * HOP / SECOND

    def heard(self, pcm):
        draw, start = random.Random(0), self.place(pcm)
        end, words = start + len(pcm) / SECOND, []
        for text, first, last in self.words:
            if first >= end or last <= start:
                continue
            whole = start <= first and last <= end
            times = [at - start + draw.uniform(-self.jitter, self.jitter) for at in (max(first, start), min(last, end))]
            words.append(TimedWord(text if whole else text[:3], *times, len(words) + 1, True))
        return words

    def __call__(self, windows, *, before=(), words=False):
        found = [self.heard(pcm) for pcm in windows]
        return [Written(said(one), tuple(range(len(one))), tuple(one) if words else ()) for one in found]

    @property
    def text(self):
        return " ".join(text for text, _, _ in self.words)


def written(script, **options):
    ((key, found),) = long_texts(script, [("it", script.pcm)], **options)
    assert key == "it"
    return found


@pytest.mark.parametrize("seed", range(4))
def test_without_a_pause_nothing_is_lost_or_said_twice(seed):
    script = SpokenScript(100, seed, jitter=0.08)
    windows = windows_of(script.pcm)
    assert [(one.start / SECOND, one.end / SECOND) for one in windows] == [(0, 30), (26, 56), (52, 82), (78, 100)]
    assert written(script).text == script.text


def test_a_talker_who_says_the_same_words_again_and_again():
    script = SpokenScript(70, 3, few=2, jitter=0.05)
    assert written(script).text == script.text
    same = SpokenScript(70, 3, few=1, jitter=0.05)  # one word alone: times decide
    assert written(same).text == same.text


def test_windows_end_in_pauses():
    script = SpokenScript(75, 1, pauses=[(10, 12), (26, 26.5), (54, 54.4), (58, 59)])
    windows = windows_of(script.pcm)
    assert [one.following for one in windows] == [one.end for one in windows]
    assert 26 < windows[0].end / SECOND < 26.5
    assert 54 < windows[1].end / SECOND < 54.4  # the first pause counts, not the longest
    assert windows[2].end == len(script.pcm)
    found = written(script, words=True, batch=2)
    assert found.text == script.text
    assert [(one.text, pytest.approx(one.start), pytest.approx(one.end)) for one in found.words] == script.words


def test_a_cut_depends_on_nothing_behind_it():
    script = SpokenScript(31, 1, pauses=[(26, 26.5)])
    whole = next_window(script.pcm, 0)
    assert whole == next_window(script.pcm[: whole.end + 1600], 0)
    assert next_window(script.pcm[: whole.end], 0) is None


@pytest.mark.parametrize("seconds", [0.5, 24.0, 30.0])
def test_short_recordings_are_one_window(seconds):
    script = SpokenScript(seconds, 2)
    assert len(windows_of(script.pcm)) == 1
    assert written(script).text == script.text


def test_recordings_are_heard_together_and_come_in_order():
    scripts = {
        name: SpokenScript(seconds, seed) for seed, (name, seconds) in enumerate({"a": 2, "b": 65, "c": 3}.items())
    }
    sizes = []

    def write(windows, **options):
        sizes.append(len(windows))
        owners = [next(s for s in scripts.values() if (s.pcm == pcm[0]).any()) for pcm in windows]
        return [owner([pcm], **options)[0] for owner, pcm in zip(owners, windows, strict=True)]

    error = ValueError("no audio")
    asked = [("a", scripts["a"].pcm), ("bad", error), ("b", scripts["b"].pcm), ("c", scripts["c"].pcm)]
    found = list(long_texts(write, asked, batch=3))
    assert [key for key, _ in found] == ["a", "bad", "b", "c"]
    assert found[1][1] is error
    assert {key: one.text for key, one in found if key != "bad"} == {key: s.text for key, s in scripts.items()}
    assert sizes == [3, 2]
    with pytest.raises(ValueError, match="batch must be at least 1"):
        list(long_texts(write, asked, batch=0))


def test_a_window_that_fails_or_goes_round_in_circles():
    script = SpokenScript(60, 0)
    texts = [Written("one two", finish="repetition", again=True), Written("three")]
    calls = iter([*texts, ValueError("no room")])
    ((_, found),) = long_texts(lambda windows, **_: [next(calls) for _ in windows], [("a", script.pcm)])
    assert str(found) == "no room"
    quiet = SpokenScript(40, 0, pauses=[(25, 26)])
    ((_, found),) = long_texts(lambda windows, **_: texts, [("a", quiet.pcm)])
    assert (found.text, found.finish, found.circles) == ("one two three", "repetition", 1)


def timed(text, start=0.0):
    return [TimedWord(word, start + n, start + n + 0.9, n + 1, True) for n, word in enumerate(text.split())]


def test_where_two_texts_meet():
    before = timed("the cat sat on", 20)
    assert doubled(before, timed("cat sat on the mat", 21), 24) == 3
    assert doubled(before, timed("Cat, sat on. the mat", 21), 24) == 3
    assert doubled(before, timed("sad one the mat", 22), 24) == 2  # nothing in common: by time
    assert doubled(before, timed("the mat", 24), 24) == 0
    assert doubled([], timed("the mat", 24), 24) == 0
    assert doubled(before, [], 24) == 0


def test_scripts_without_spaces():
    joined = JoinedWindows()
    words = [TimedWord(one, n, n + 0.5, n + 1, False) for n, one in enumerate("你好吗。")]
    assert said(joined.fresh(words, 0.0)) == "你好吗。"


def test_segments_of_words():
    words = [*timed("It rains. We stay"), *timed("home", 6.0)]
    assert [(one.start, one.text) for one, _ in segments_of_words(words)] == [
        (0.0, "It rains."), (2.0, "We stay"), (6.0, "home"),
    ]  # fmt: skip
    assert all(len(one.text) <= 84 for one, _ in segments_of_words(timed("word " * 60)))
