"""MMAU-Pro's three ways of scoring, by hand from the rule."""

import numpy as np
import pytest

from afn_model.eval.rules.mmau_pro import graded, mmau_pro, overall
from afn_model.eval.score import RuleError, Tools
from tests.model.eval.rules.saying import points, said


@pytest.mark.parametrize(
    ("reply", "official", "ours"),
    [
        ("CORRECTNESS: 4 - x\nRELEVANCE: 5\nCOMPLETENESS: 3\nCLARITY: 4\nOVERALL: 4.5 - y", 4.5, 4.5),
        ("correctness: 4\nrelevance: 5\ncompleteness: 3\nclarity: 4", 4.0, 4.0),
        ("CORRECTNESS: 1\nRELEVANCE: 1\nCOMPLETENESS: 1\nCLARITY: 1\nOVERALL: 3", 1.0, 3.0),  # 3 becomes the mean
        ("CORRECTNESS: 5", 3.5, None),  # three missing ones are 3.0
        ("no grade", 3.0, None),
        ("**CORRECTNESS**: 5\n**OVERALL**: 5", 3.0, 5.0),  # bold names are not found
        ("OVERALL: [4] - x", 3.0, 4.0),  # nor grades in brackets
        ("OVERALL: 10", 10.0, None),
    ],
)
def test_a_judges_reply(reply, official, ours):
    assert overall(reply) == pytest.approx(official)
    assert graded(reply) == (None if ours is None else pytest.approx(ours))


class Replying:
    """A judge that replies the same to all."""

    name = "replying"

    def __init__(self, *replies):
        self.replies, self.prompts = replies, []

    def grade(self, prompts, parse, *, system="", repeats=1, **settings):
        assert (repeats, settings) == (1, {"temperature": 0.1, "max_tokens": 512})
        self.prompts += prompts
        return [[None if reply is None else parse(reply)] for _, reply in zip(prompts, self.replies, strict=True)]


def of(category, output, answer, choices=(), **extra):
    return said(output, answer, choices, groups={"category": category}, extra=extra)


ITEMS = [
    of("open", "a dog", "a dog barks"),
    of("open", None, "a cat"),
    of("instruction following", "so be it", None, task_identifier="No Commas", kwargs={}),
    of("instruction following", None, None, task_identifier="No Commas", kwargs={}),
    of("instruction following", "x", None, task_identifier="Haiku"),
    of("sound", "hound", "dog", ("dog", "cat")),
    of("sound", "(B)", "cat", ("dog", "cat")),
    of("music", "", "dog", ("dog", "cat")),
    of("music", "dog", "dog", ("dog",)),
    of("music", "dog", None, ("dog", "cat")),
]
PLANE = {"dog": (1, 0), "cat": (0, 1), "hound": (3, 1), "(B)": (2, 0)}
PLANAR = Tools(embed=lambda texts: np.array([PLANE[text] for text in texts], float), embed_name="plane")


def test_categories_have_rules_of_their_own():
    judge = Replying("OVERALL: 4", "nothing")
    score = mmau_pro(ITEMS, Tools(judge, PLANAR.embed, "plane"))
    assert points(score) == [0.8, pytest.approx(0.6), 1, 0, 0, 1, 0, 0, None, None]
    assert score.value == pytest.approx(100 * 3.4 / 8)
    assert score.groups["category: open"] == (pytest.approx(70), 2)
    assert score.groups["category: instruction following"] == (pytest.approx(100 / 3), 3)
    assert score.extracted[4] == "Haiku: unknown instruction"
    assert (score.unparsed, score.signature) == (1, "closed by plane, open by replying")
    assert "1 questions with fewer than two choices" in score.notes[1]
    assert "a dog barks" in judge.prompts[0]


def test_ours_reads_choices_and_leaves_out_what_the_judge_did_not_grade():
    score = mmau_pro(ITEMS, Tools(Replying("nothing")), closed="read")
    assert points(score) == [None, 0, 1, 0, 0, 0, 1, 0, None, None]
    assert "1 open questions are left out: the judge gave no grade" in score.notes
    lost = mmau_pro(ITEMS, Tools(Replying(None, None), PLANAR.embed, "plane"))
    assert points(lost)[:2] == [None, None]


def test_what_is_missing_is_said_and_never_made_up():
    score = mmau_pro(ITEMS, PLANAR)
    assert points(score) == [None, None, 1, 0, 0, 1, 0, 0, None, None]
    assert score.signature == "closed by plane, open not scored"
    assert any("2 open questions are left out" in note for note in score.notes)
    with pytest.raises(RuleError, match="embedder"):
        mmau_pro(ITEMS, Tools(Replying("OVERALL: 4", "OVERALL: 4")))
    with pytest.raises(RuleError, match="2 open questions need a judge"):
        mmau_pro(ITEMS[:2], PLANAR)
    assert mmau_pro(ITEMS[2:5], Tools()).value == pytest.approx(100 / 3)
