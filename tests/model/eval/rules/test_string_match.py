"""MMAU's and MMAR's string match, by hand from the rule."""

import pytest

from afn_model.eval.rules.string_match import matches, string_match
from afn_model.eval.score import Tools
from tests.model.eval.rules.saying import points, said


@pytest.mark.parametrize(
    ("output", "answer", "choices", "right"),
    [
        ("Dog", "Dog", ("Dog", "Cat"), True),
        ("It is a dog.", "Dog", ("Dog", "Cat"), True),
        ("A dog, not a cat", "Dog", ("Dog", "Cat"), False),  # names another option
        ("(A)", "Dog", ("Dog", "Cat"), False),  # a letter alone
        ("dogs", "Dog", ("Dog", "Cat"), False),  # whole words
        ("bass guitar", "Guitar", ("Guitar", "Bass guitar"), False),  # "bass" is the other's
        ("bass guitar", "Bass guitar", ("Guitar", "Bass guitar"), True),  # "guitar" is the answer's too
        ("guitar of a bass", "Bass guitar", ("Guitar", "Bass guitar"), True),  # a set of words
        ("major C", "C major", ("C major", "A major"), True),
        ("", "Dog", ("Dog", "Cat"), False),
        ("...", "Dog", ("Dog", "Cat"), False),
        ("hip-hop", "Hip hop", ("Hip hop", "Jazz"), True),  # the hyphen parts words
    ],
)
def test_words_of_the_answer_and_of_no_other_option(output, answer, choices, right):
    assert matches(output, answer, choices) is right


def test_an_absent_output_shrinks_the_denominator_and_an_empty_one_does_not():
    answered = [
        said("Dog", "Dog"),
        said(None, "Dog"),
        said("", "Dog"),
        said("Dog", None),
        said("Dog", "Dog"),
    ]
    score = string_match(answered, Tools())
    assert points(score) == [1, None, 0, None, 1]
    assert score.value == pytest.approx(100 * 2 / 3)
    assert score.notes == ["1 items without an output are left out, as the official rule does"]
