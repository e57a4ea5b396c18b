"""F1 of entailment, by hand."""

import pytest

from afn_model.eval.rules.entailment import f1
from afn_model.eval.score import Tools, interval
from tests.model.eval.rules.saying import said

RELATIONS = ("entailment", "neutral", "contradiction")


def test_macro_f1_of_a_table_by_hand():
    # says: e n c ? (none);  gold e: 2 e, 1 n;  gold n: 1 e, 1 n, 1 ?;  gold c: 3 c
    rows = [("entailment", "entailment")] * 2 + [("(B) neutral", "entailment"), ("(A)", "neutral"), ("B", "neutral")]
    rows += [("who knows", "neutral")] + [("It is a contradiction", "contradiction")] * 3
    answered = [said(output, answer, RELATIONS, id=str(place)) for place, (output, answer) in enumerate(rows)]
    score = f1(answered, Tools())
    expected = [2 * 2 / (3 + 3), 2 * 1 / (2 + 3), 2 * 3 / (3 + 3)]  # 2 TP / (said + gold)
    assert score.value == pytest.approx(100 * sum(expected) / 3)
    found = [score.groups[f"f1: {name}"] for name in RELATIONS]
    assert found == [(pytest.approx(100 * value), 3) for value in expected]
    assert score.unparsed == 1
    parts = [part for part in score.parts if part is not None]
    assert score.scale * sum(a for a, _ in parts) / sum(b for _, b in parts) == pytest.approx(score.value)
    low, high = interval(answered, score)
    assert low < score.value < high


def test_parts_are_the_first_order_change_of_f1():
    """An item counted 1 + h times instead of once changes F1 by h times what its part says, divided by the items."""

    rows = [("A", "neutral"), ("A", "entailment"), ("B", "neutral"), ("C", "contradiction"), ("?", "contradiction")]
    many = 200
    base = [said(output, answer, RELATIONS) for output, answer in rows * many]
    score = f1(base, Tools())
    for place, (output, answer) in enumerate(rows):
        more = f1([*base, said(output, answer, RELATIONS)], Tools()).value
        predicted = (100 * score.parts[place][0] - score.value) / len(base)
        curvature = 100 * 8 / many**2  # second order: each F is a ratio of counts of at least `many`
        assert abs(more - score.value - predicted) < curvature


def test_absent_outputs_are_misses_and_hidden_answers_are_left_out():
    answered = [said(None, "neutral", RELATIONS), said("neutral", "neutral", RELATIONS), said("A", None, RELATIONS)]
    score = f1(answered, Tools())
    assert score.value == pytest.approx(100 * 2 / 3)
    assert (score.n, score.unparsed) == (2, 0)
