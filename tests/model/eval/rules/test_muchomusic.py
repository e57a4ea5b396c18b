"""Both rules of MuChoMusic, by hand from them."""

import pytest

from afn_model.eval.rules.muchomusic import original, original_choice, rul, rul_choice
from afn_model.eval.score import Tools, interval
from tests.model.eval.rules.saying import points, said

FOUR = ("a violin", "a flute", "drums", "a bass")


@pytest.mark.parametrize(
    ("output", "choice"),
    [
        ("[[A]] no, [[B]]", "a flute"),  # the last
        ("[[E]]", ""),  # beyond the choices
        ("[[b]]", ""),  # small
        ("The answer is B, or I choose C", "drums"),  # the last phrase
        ("the answer is a flute", "a violin"),  # case is ignored behind a phrase
        ("(C) before option B", "a flute"),  # the first of the alphabet
        ("option Any", "a violin"),
        ("option c", ""),
        ("Some A Flute", "a flute"),
        ("a bassoon", "a bass"),  # inside of a word
        ("drums and a flute", "a flute"),  # the first of the choices
        ("B", ""),
        ("", ""),
    ],
)
def test_what_rulistening_reads(output, choice):
    assert rul_choice(output, FOUR) == choice


def test_the_majority_of_the_passes_counts():
    passes = {
        "1": ["[[A]]", "[[A]]", "[[B]]", "?"],  # a violin twice
        "2": ["[[B]]", "[[A]]", "[[A]]", "[[B]]"],  # a tie: the first one counts
        "3": ["?", "?", "?", "[[A]]"],  # what cannot be read does not vote
        "4": ["?", None, "", "?"],
    }
    answered = [
        said(output, "a violin", FOUR, id=f"{name}.{place}", extra={"of": name})
        for name, outputs in passes.items()
        for place, output in enumerate(outputs)
    ]
    score = rul(answered, Tools())
    assert [point for point in points(score) if point is not None] == [1, 0, 1, 0]
    assert (score.value, score.n, score.unparsed) == (50, 4, 7)
    assert "of 16 passes by themselves 31.2 % are right" in score.notes
    low, high = interval(answered, score)
    assert low < 50 < high


def test_options_in_another_order_vote_as_texts():
    orders = [FOUR, FOUR[::-1], (*FOUR[2:], *FOUR[:2])]
    letters = ["[[A]]", "[[D]]", "[[B]]"]  # violin, violin, bass
    answered = [
        said(output, "a violin", order, id=str(place), extra={"of": "q"})
        for place, (output, order) in enumerate(zip(letters, orders, strict=True))
    ]
    assert rul(answered, Tools()).value == 100


def test_our_own_reading_has_the_same_majority():
    answered = [said(output, "a flute", FOUR, extra={"of": "q"}) for output in ("the answer is a flute", "B", "A or B")]
    assert rul(answered, Tools()).extracted == ["a violin", "none", "none"]
    score = rul(answered, Tools(), read="named")
    assert (score.value, score.extracted) == (100, ["a flute", "a flute", "none"])


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ("The correct answer is: B", 1),
        ("A. The correct answer is: C", 2),  # what follows the last prefix
        ("Drums", 3),  # a capital in a word is a letter
        ("A or B", -1),  # two letters, no text
        ("A flute, B", 1),  # two letters, so the text
        ("drumsticks", 2),  # inside of a word
        ("a flute and a violin", 0),  # the first of the choices
        ("b", -1),
        ("", -1),
    ],
)
def test_what_the_original_reads(output, place):
    assert original_choice(output, FOUR) == place


def test_the_original_counts_all_items():
    score = original([said(output, "a flute", FOUR) for output in ("B", "C", "?", None)], Tools())
    assert (score.value, score.unparsed) == (25, 1)
    assert score.notes == ["instruction following rate 50.0 %"]
