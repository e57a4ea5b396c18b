"""MMSU's letters, by hand from the rule."""

import pytest

from afn_model.eval.rules.mmsu import letter
from afn_model.eval.score import Tools
from tests.model.eval.rules.saying import points, said

# output -> read by the official rule: its first character, else its last but one, else left out
READ = [
    ("B", "B"),
    ("B. Cat", "B"),
    ("The answer is B.", "B"),
    ("Actually C", "A"),
    ("the answer is B", "wrong format"),
    ("b", "wrong format"),
    ("(B)", "B"),
    ("**B**", "wrong format"),
    ("\nB\n", "B"),
    ("E", "wrong format"),
    ("It is\nB\n.", "B"),
]


def test_first_character_or_last_but_one():
    score = letter([said(output, "Cat") for output, _ in READ], Tools())
    assert score.extracted == [found for _, found in READ]
    assert points(score) == [None if found == "wrong format" else float(found == "B") for _, found in READ]
    assert score.value == pytest.approx(100 * 6 / 7)
    assert score.unparsed == 4
    assert score.notes == ["4 outputs in another format are left out, as the official rule does"]


def test_an_empty_output_has_the_letter_of_the_item_before():
    outputs = ["", "B", "", None, "None", "what", "", "C"]
    answered = [said(output, "Cat") for output in outputs]
    score = letter(answered, Tools())
    assert score.extracted == ["empty", "B", "B", "B", "B", "wrong format", "B", "C"]
    assert points(score) == [0, 1, 1, 1, 1, None, 1, 0]
    assert "4 empty outputs have the letter" in score.notes[1]
    ours = letter(answered, Tools(), every=True)
    assert points(ours) == [0, 1, 0, 0, 0, 0, 0, 0]
    assert ours.value == 100 / 8
    assert len(ours.notes) == 1


def test_a_letter_beyond_the_choices_is_wrong():
    assert points(letter([said("D", "Cat", ("Dog", "Cat"))], Tools())) == [0]


def test_what_is_absent_is_not_called_unparsed():
    score = letter([said(output, "Cat") for output in (None, "", "what")], Tools(), every=True)
    assert (score.value, score.unparsed, score.n) == (0, 2, 3)
