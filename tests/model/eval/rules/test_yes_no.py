"""Yes or no, by hand from the rules."""

import pytest

from afn_model.eval.rules.yes_no import cmm, strict
from afn_model.eval.score import Tools
from tests.model.eval.rules.saying import points, said

ROWS = [  # output, answer, right by CMM's rule, right by ours
    ("Yes", "yes", 1, 1),
    ("Yes, I did.", "no", 0, 0),
    ("No.", "no", 1, 1),
    ("Not sure", "no", 1, 0),
    ("I know", "no", 1, 0),
    ("None", "no", 1, 0),
    ("Well, yes", "yes", 0, 1),
    ("  YES", "yes", 1, 1),
    ("Oh no!", "no", 1, 1),
    ("yes and no", "yes", 1, 0),
    ("There is no dog.", "no", 0, 1),
    ("A", "yes", 0, 0),
    ("", "yes", 0, 0),
    (None, "no", 0, 0),
]


def test_first_five_characters_and_the_words():
    answered = [said(output, answer, ()) for output, answer, *_ in ROWS]
    official, ours = cmm(answered, Tools()), strict(answered, Tools())
    assert points(official) == [row[2] for row in ROWS]
    assert points(ours) == [row[3] for row in ROWS]
    assert official.value == pytest.approx(100 * 8 / 14)
    assert official.groups == {
        "measure: PA": (pytest.approx(100 * 3 / 6), 6),
        "measure: HR": (pytest.approx(100 * 5 / 8), 8),
    }
    assert ours.groups["measure: HR"] == (pytest.approx(100 * 3 / 8), 8)
    assert ours.unparsed == 6
