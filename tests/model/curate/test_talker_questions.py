"""Questions about who speaks: what is asked, that answers are right, and what other words for them must keep."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from afn_model.curate.talker_questions import NOBODY, TEMPLATES, kept_meaning, questions_about
from afn_model.data import records
from afn_model.scoring.rewards import reward
from tests.model.curate.test_conversation import made, said, talk


def asked(one, subject="s", **told):
    tally = Counter()
    found = [(each, each.product(subject, each.ask, {})) for each in questions_about(one, subject, tally, **told)]
    return found, +tally


@pytest.mark.parametrize(("seed", "speakers"), [(0, 2), (1, 4), (2, 10)])
def test_answers_are_found_again_in_the_truth(seed, speakers):
    one, turns, truth = made(seed, speakers, count=24)
    first = dict.fromkeys(name for name, _, _ in sorted(turns, key=lambda turn: turn[1]))
    numbers = {f"Speaker {number}": name for number, name in enumerate(first, 1)}
    found, _ = asked(one, words=(2, 6))
    assert {each.made.kind for each, _ in found} >= {"speaker_identification"}
    for each, product in found:
        records.check({**product, "audios": []} | {"messages": product["messages"]})
        answer, question = product["truth"]["answer"], product["messages"][0]["content"]
        assert product["axis"] == "talkers"
        assert reward(answer, product["rewards"]) == {"exact" if each.made.wrong else "wer": 1.0}
        if each.made.kind == "speaker_identification":
            quote = re.search(r'"(.*?)"', question)[1].split()
            places = [word.text for word in one.words]
            assert {truth[places.index(word)] for word in quote} == {numbers[answer]}
            assert sorted(product["truth"]["options"]) == sorted(numbers)
        elif each.made.kind == "target_speaker_asr":
            who = numbers[re.search(r"Speaker \d+", each.ask)[0]]
            assert answer.split() == [word.text for word, name in zip(one.words, truth, strict=True) if name == who]
        else:
            for told in product["truth"]["interruptions"]:
                assert any(name == numbers[told["by"]] and start == told["start"] for name, start, _ in turns)


def three(*more):
    turns = [("x", 1.0, 9.0), ("y", 8.4, 20.0), ("z", 25.0, 29.0), *more]
    return talk(turns, [*said("we shall see", 2.0), *said("no we shall not", 12.0), *said("stop it now", 26.0)], 60.0)


def kinds(found):
    return [product["messages"][1]["content"] for each, product in found if each.made.kind == "interruption"]


def test_interruptions_that_are_asked_about():
    found, tally = asked(three())
    answers = kinds(found)
    assert sorted(answers) == ["At about 8 s", "Speaker 2", "Speaker 2 interrupts Speaker 1"]
    whether = next(one for _, one in found if one["truth"]["answer"] == "Speaker 2 interrupts Speaker 1")
    assert {NOBODY, "Speaker 1 interrupts Speaker 2"} < set(whether["truth"]["options"])
    assert len(whether["truth"]["options"]) == 4
    when = next(one for _, one in found if one["truth"]["answer"] == "At about 8 s")
    times = sorted(int(re.search(r"\d+", option)[0]) for option in when["truth"]["options"])
    assert len(times) == 4
    assert all(later - earlier >= 4 for earlier, later in pairwise(times))
    assert tally == {}
    found, tally = asked(three(("x", 14.0, 15.5)))  # into words that go on: whether that is one nobody knows
    assert sorted(kinds(found)) == ["At about 8 s", "Speaker 2"]
    assert tally["interruptions in doubt"] == 1
    found, _ = asked(three(("x", 12.0, 13.5)))  # and too near for a question about its time
    assert kinds(found) == ["At about 8 s"]
    found, _ = asked(talk([("x", 0.0, 4.0), ("y", 2.0, 2.5), ("y", 5.0, 8.0)]))
    assert kinds(found) == [NOBODY]


def test_what_is_not_asked():
    def tally_of(*turns):
        found, tally = asked(talk(turns))
        assert not found
        return tally

    assert tally_of() == {"parts with no speaker": 1}
    assert tally_of(("a", 1.0, 3.0)) == {"parts with one speaker": 1}
    assert tally_of(("a", 1.0, 3.0), ("b", 1.1, 4.0)) == {"parts with speakers who begin together": 1}
    crowd = [(str(number), float(number), number + 0.9) for number in range(27)]
    assert tally_of(*crowd) == {"parts with many speakers": 1}
    found, tally = asked(talk([("a", 1.0, 3.0), ("b", 4.0, 6.0)], [*said("one two three", 1.0), ("so", 2.8, 4.2)]))
    assert {each.made.kind for each, _ in found} == {"speaker_identification", "interruption"}
    assert tally == {"speakers with words in doubt": 2}


def test_phrasings_and_utterances_depend_on_what_is_heard():
    one = three()
    assert asked(one) == asked(one)
    asks = {
        each.ask for at in range(40) for each, _ in asked(one, str(at))[0] if each.made.kind == "target_speaker_asr"
    }
    assert len(asks) == 3 * len(TEMPLATES["target_speaker_asr"])
    quoted = {each.facts["utterance"] for at in range(20) for each, _ in asked(one, str(at), most=1)[0][:1]}
    assert quoted == {"we shall see", "no we shall not", "stop it now"}


def test_words_without_spaces_are_counted_by_characters():
    turns = [("x", 1.0, 3.0), ("y", 4.0, 6.0)]
    found, _ = asked(talk(turns, [*said("你 好 世界", 1.0), *said("добрый день друзья", 4.0)]))
    told = [one["rewards"] for each, one in found if each.made.kind == "target_speaker_asr"]
    assert told == [[{"kind": "cer", "text": "你好世界"}], [{"kind": "wer", "text": "добрый день друзья"}]]


@pytest.mark.parametrize(
    ("ask", "other", "kept"),
    [
        ('Who says "so be it"?', 'Tell me, by whom is "so be it" said?', True),
        ('Who says "so be it"?', 'By whom is "So be it" said?', False),
        ('Who says "so be it"?', "By whom is so be it said?", False),
        ('Who says "so be it"?', 'Who says "so be it" and "no"?', False),
        ('Who says "at 9 sharp"?', 'Is it Speaker 2 who says "at 9 sharp"?', False),
        ('Who says "at 9 sharp"?', 'Is it the second voice that says "at 9 sharp"?', False),
        ("What does Speaker 2 say?", "Give all words of speaker 2.", True),
        ("What does Speaker 2 say?", "Give all words of Speaker 3.", False),
        ("What does Speaker 2 say?", "Give all words of the speaker.", False),
        ("Who cuts in at about 12 seconds?", "At 12 seconds, who cuts in?", True),
        ("Who cuts in at about 12 seconds?", "At 21 seconds, who cuts in?", False),
        ("Who cuts in?", " ", False),
        ("Who cuts in?", "Who cuts in? " + "I wonder about that. " * 5, False),
    ],
)
def test_other_words_for_a_question(ask, other, kept):
    assert kept_meaning(ask, other) is kept
