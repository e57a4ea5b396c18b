"""Conversations with exact truth: whose words, what is said once, who interrupts whom."""

import numpy as np
import pytest

from afn_model.curate.conversation import conversation_of, spelled, without_spaces

STEP = 0.05  # seconds: the grid that truth is computed on


def talk(turns, words=(), seconds=60.0):
    """Turns ("a", 1.0, 2.0), words ("yes", 1.1, 1.3)."""
    listed = [dict(zip(("speaker", "start", "end"), one, strict=True)) for one in turns]
    said = [dict(zip(("word", "start", "end"), one, strict=True)) for one in words]
    return conversation_of(said, listed, seconds)


def said(text, start, each=0.3):
    """Words one after another."""
    return [(word, start + each * at, start + each * (at + 1)) for at, word in enumerate(text.split())]


def made(seed, speakers=4, count=14):
    """Random turns of which each is filled with words of its own, half of them beginning before the last one ends."""
    rng, at, turns, words, truth = np.random.default_rng(seed), 0.5, [], [], []
    for number in range(count):
        who = "abcdefghij"[int(rng.integers(speakers))]
        length = STEP * int(rng.integers(6, 60))
        start = max(0.0, at + STEP * int(rng.integers(-20, 20)))
        last = [one for one in turns if one[0] == who]
        start = max(start, last[-1][2] + 1.0) if last else start
        turns.append((who, start, start + length))
        for place, begin in enumerate(np.arange(0, length - 0.24, 0.3)):
            words.append((f"w{number}x{place}", start + begin, start + begin + 0.24))
            truth.append(who)
        at = start + length
    order = sorted(range(len(words)), key=lambda place: words[place][1:])
    return talk(turns, [words[place] for place in order], at + 5), turns, [truth[place] for place in order]


def grid(turns, who, start, end):
    """Share of a time that somebody else than ``who`` (or he, where it is a list) speaks, by counting milliseconds."""
    moments = np.arange(round(1000 * start), round(1000 * end)) + 0.5
    there = [(moments >= 1000 * first) & (moments < 1000 * last) for name, first, last in turns if (name in who)]
    return float(np.any(there, 0).mean()) if there else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_words_are_those_of_who_speaks_alone(seed):
    one, turns, truth = made(seed)
    names = {name for name, _, _ in turns}
    assert one.speakers == tuple(dict.fromkeys(name for name, _, _ in sorted(turns, key=lambda turn: turn[1])))
    in_doubt = set()
    for word, owner, who in zip(one.words, one.owners, truth, strict=True):
        shares = {name: grid(turns, [name], word.start, word.end) for name in names}
        clear = all(share <= 0.2 for name, share in shares.items() if name != who)
        assert owner == (who if clear else "")
        in_doubt |= set() if clear else {name for name, share in shares.items() if share > 0.2}
    assert in_doubt <= one.doubtful
    for name in names - one.doubtful:  # of whom everything is known, that is all there is
        expected = [word.text for word, who in zip(one.words, truth, strict=True) if who == name]
        assert one.said_by(name) == " ".join(expected)


@pytest.mark.parametrize("seed", range(4))
def test_utterances_are_in_a_turn_in_which_nobody_else_speaks(seed):
    one, turns, truth = made(seed)
    found = one.utterances(2, 4)
    assert found
    for each in found:
        places = range(each.first, each.last + 1)
        assert {truth[at] for at in places} == {each.speaker}
        assert 2 <= len(places) <= 4
        assert each.text == " ".join(one.words[at].text for at in places)
        assert grid(turns, {name for name, _, _ in turns} - {each.speaker}, each.start, each.end) == 0.0
        assert grid(turns, [each.speaker], each.start, each.end) == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_interruptions_on_a_grid(seed):
    one, turns, _ = made(seed, speakers=3)
    sure = {(each.by, each.of, round(each.start, 2)) for each in one.interruptions() if each.sure}
    for by, of, start in sure:  # by steps of the clock: he is silent, another alone speaks, he begins, the other stops
        steps = {
            who: np.array([grid(turns, [who], at, at + STEP) > 0.5 for at in _clock(one.seconds)]) for who in "abc"
        }
        at = round(start / STEP)
        assert steps[by][at]
        assert not steps[by][at - 1]
        assert [who for who in "abc" if steps[who][at - 1]] == [of]
        stops = at + int(np.argmin(steps[of][at:]))
        ends = at + int(np.argmin(steps[by][at:]))
        assert stops < ends
        goes_on = steps[of][ends : ends + round(2 / STEP) + 1].any()
        assert (stops - at) * STEP <= 1.0 + 1e-6 or goes_on
        assert (ends - at) * STEP >= 0.7 - STEP
    into = [  # and each beginning in another's turn is sure, or in doubt, or a short word of one whom nobody heeds
        turn for turn in turns if any(a != turn[0] and b < turn[1] < c for a, b, c in turns)
    ]
    listed = {(each.by, round(each.start, 2)) for each in one.interruptions()}
    for name, start, end in into:
        assert (name, round(start, 2)) in listed or end - start < 0.7


def _clock(seconds):
    return np.arange(0, seconds, STEP)


A = ("a", 0.0, 5.0)


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        ([A, ("b", 4.3, 8.0)], [("b", "a", 4.3, True)]),  # stops after 0.7 s
        ([A, ("b", 2.0, 2.6)], []),  # "mm-hm"
        ([A, ("b", 2.0, 2.8)], [("b", "a", 2.0, False)]),  # long, and nobody stops
        ([A, ("b", 4.7, 5.3)], [("b", "a", 4.7, False)]),  # short, and the other stops
        ([A, ("b", 4.9, 8.0)], [("b", "a", 4.9, False)]),  # about done anyway
        ([A, ("b", 0.3, 0.9)], []),
        ([A, ("b", 0.3, 8.0)], [("b", "a", 0.3, False)]),  # begin together
        ([A, ("b", 5.0, 8.0)], []),  # the edge is no overlap
        ([A, ("b", 3.0, 8.0)], [("b", "a", 3.0, False)]),  # speaks on for 2 s, and never again
        ([A, ("b", 3.0, 6.0), ("a", 7.5, 9.0)], [("b", "a", 3.0, True)]),  # resumes
        ([A, ("b", 3.0, 6.0), ("a", 8.5, 9.0)], [("b", "a", 3.0, False)]),
        ([A, ("c", 2.0, 5.2), ("b", 4.3, 8.0)], [("c", "a", 2.0, False), ("b", "c", 4.3, False)]),  # into two
    ],
)
def test_what_is_an_interruption(turns, found):
    assert [(one.by, one.of, one.start, one.sure) for one in talk(turns).interruptions()] == found


def test_an_edge_of_a_part_is_no_end():
    one = talk([A, ("b", 4.3, 8.0)], said("one two three four five six", 3.9, 0.4))
    part = one.part(3.0, 4.7)
    assert [(each.by, each.sure) for each in part.interruptions()] == [("b", False)]
    assert (part.seconds, part.turns[0].start, part.turns[0].end) == (1.7, 0.0, 1.7)
    assert [(each.text, each.whole) for each in part.words] == [("one", True), ("two", True)]
    assert one.part(4.1, 6.0).words[0].whole is False
    assert one.part(4.1, 6.0).owners[0] == ""


def test_words_at_edges_and_without_turns():
    turns = [("a", 1.0, 2.0), ("b", 2.0, 3.0), ("c", 6.0, 8.0)]
    words = [("in", 1.0, 2.0), ("at", 2.0, 2.0), ("half", 1.5, 2.5), ("near", 3.4, 3.6), ("far", 4.4, 4.6)]
    one = talk(turns, [*words, ("all", 2.5, 3.0), ("sea", 6.5, 7.0)])
    owners = dict(zip((word.text for word in one.words), one.owners, strict=True))
    assert owners == {"in": "a", "at": "b", "half": "", "near": "", "far": "", "all": "b", "sea": "c"}
    assert one.doubtful == {"a", "b"}  # by "half", and b by "near" too; what is far away is nobody's
    assert talk([("a", 1.0, 2.0), ("b", 4.0, 6.0)], [("in", 1.0, 2.0)]).doubtful == {"b"}  # two seconds without a word
    assert talk([("a", 1.0, 2.0), ("b", 4.0, 4.6)], [("in", 1.0, 2.0)]).doubtful == frozenset()
    assert talk([("a", 1.0, 3.0), ("a", 2.0, 4.0), ("a", 4.0, 5.0)]).turns[0].end == 5.0
    assert not talk([("a", 1.0, 3.0), ("b", 1.1, 2.0)]).ordered
    assert talk([("a", 1.0, 3.0), ("b", 1.3, 2.0)]).ordered
    assert talk([]).speakers == ()


def test_what_is_said_twice_is_not_asked_about():
    turns = [("a", 0.0, 4.0), ("b", 5.0, 9.0), ("c", 10.0, 14.0)]
    words = [*said("we meet at nine", 0.5), *said("at nine, we MEET at Nine!", 5.5), *said("nine is too late", 10.5)]
    assert [one.text for one in talk(turns, words).utterances(3, 12)] == [
        "at nine, we MEET at Nine!",
        "nine is too late",
    ]
    one = talk(turns, [*said("no no no no", 0.5), *said("yes no no no", 5.5), *said("we x meet y", 10.5)])
    assert [each.text for each in one.utterances(3, 3)] == ["yes no no", "we x meet"]
    # Said by two at once, the words of one lie between those of the other.
    both = [*said("see you soon then", 0.5), *said("see you soon then", 0.65)]
    one = talk([*turns, ("e", 0.2, 4.0), ("d", 15.0, 19.0)], [*both, *said("see you soon", 15.5)])
    assert one.utterances(3, 12) == []


def test_other_scripts():
    one = talk([("a", 0.0, 4.0), ("b", 5.0, 9.0)], [*said("你 好 世界 。", 0.5), *said("до свидания, друзья", 5.5)])
    assert [each.text for each in one.utterances(2, 9)] == ["你好世界。", "до свидания, друзья"]
    assert spelled(["iPhone", "很", "好", "ok", "สวัสดี", "ครับ"]) == "iPhone 很好 ok สวัสดีครับ"
    assert without_spaces("你好世界 ok")
    assert not without_spaces("до свидания")
    assert not without_spaces("안녕 하세요")
