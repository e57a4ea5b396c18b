"""Gains of one model over another on the same records: their errors, and those of several seeds."""

import math

import pytest

from bench import curriculum_gains as gains

BEFORE = {"a": [0.0, 1.0, 0.0, 1.0], "b": [0.5, 0.5]}
AFTER = {"a": [1.0, 1.0, 0.0, 1.0], "b": [1.0, 0.25]}


def test_a_gain_of_weighed_axes():
    """By hand: a gains 1/4 and has Σd² = 1; b gains 1/8 and has Σd = 1/4, Σd² = 5/16."""
    found = gains.gain(BEFORE, AFTER, {"a": 3, "b": 1, "unused": 5})
    assert found.difference == pytest.approx(0.75 / 4 + 0.25 / 8)
    a, b = (2 / 6 - (1 / 6) ** 2) / 6, ((5 / 16 + 1) / 4 - (1 / 16) ** 2) / 4
    assert found.error == pytest.approx(math.sqrt(a * 0.75**2 + b * 0.25**2))
    assert found.errors == pytest.approx(found.difference / found.error)
    assert gains.mean(AFTER, {"a": 3, "b": 1}) == pytest.approx((3 * 0.75 + 0.625) / 4)


def test_equal_answers_have_an_error_and_no_gain():
    found = gains.gain(BEFORE, BEFORE, {"a": 1, "b": 1})
    assert found.difference == 0
    assert found.error > 0
    assert str(gains.Gain(-1e-9, 0.25)) == "+0.000 ± 0.250"


def test_seeds_add_their_spread():
    blend = {"a": 1, "b": 0}
    same = gains.over_seeds(BEFORE, [AFTER, AFTER], blend)
    assert same == gains.gain(BEFORE, AFTER, blend)
    assert gains.over_seeds(BEFORE, [AFTER, AFTER], {"a": 1}) == same, "an axis that is not named is left out"
    both = gains.over_seeds(BEFORE, [AFTER, {"a": [1.0] * 4, "b": [0.5, 0.5]}], blend)
    assert both.difference == pytest.approx((0.25 + 0.5) / 2)
    records = gains.gain(BEFORE, {"a": [1.0, 1.0, 0.5, 1.0], "b": [0.5, 0.5]}, blend)
    assert both.error == pytest.approx(math.hypot(records.error, 0.25 / 2))


def test_scores_are_read_as_they_are_written():
    assert gains.scores({"a": "1 0 0.667"}) == {"a": [1.0, 0.0, 0.667]}


def test_other_records_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        gains.gain(BEFORE, {"a": [1.0]}, {"a": 1})
