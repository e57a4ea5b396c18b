"""Our rule for options."""

import pytest

from afn_model.eval.rules.choices import choices
from afn_model.eval.score import Tools
from tests.model.eval.rules.saying import points, said


def test_unreadable_outputs_and_absent_ones_are_wrong_and_hidden_answers_are_left_out():
    answered = [
        said("(B) Cat", "Cat", groups={"task": "sound"}),
        said("dog", "Cat", groups={"task": "sound"}),
        said("no idea", "Cat", groups={"task": "music"}),
        said(None, "Cat", groups={"task": "music"}),
        said("B", None),
        said("B", "a cat"),
        said("B", "Horse"),
    ]
    score = choices(answered, Tools())
    assert points(score) == [1, 0, 0, 0, None, 1, 0]
    assert score.value == pytest.approx(100 * 2 / 6)
    assert (score.n, score.unparsed) == (6, 1)
    assert score.groups == {"task: music": (0.0, 2), "task: sound": (50.0, 2)}
    assert score.extracted[0] == "leading: Cat"
    assert score.extracted[2:4] == ["none", "no output"]
    assert score.notes == ["1 items whose answer is none of their options count as wrong"]


def test_equal_choices_are_one():
    assert choices([said("B", "Dog", ("Dog", "Dog", "Cat"))], Tools()).value == 100
