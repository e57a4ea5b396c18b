"""Rules for long questions: each flaw is one that a check catches, the rest passes, and the share is as they say."""

from collections import Counter

import pytest

from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.questions import read_questions, schema, sift
from afn_model.curate.replies import mismatch
from afn_model.curate.stages.long_questions import CHECKS, RELATIONS
from afn_model.curate.stand_ins.rules import RULES
from afn_model.curate.stand_ins.rules.long_questions import FLAWED, FLAWS, GENERAL, GOOD, asked_of, written
from afn_model.curate.stand_ins.rules.rule_input import RuleInput
from afn_model.curate.timeline import Moment, Timeline
from tests.model.curate.long_sounds import CAUGHT, sounds


def request(kind, line, pairs=30, wrong=3):
    told = {"pairs": str(pairs), "wrong": str(wrong or "no"), "seconds": f"{line.seconds[0]:.1f}"}
    return prompt_file(kind).fill(annotations=line.said(), **told)


@pytest.mark.parametrize("kind", GOOD)
def test_each_flaw_is_caught_as_what_it_is(kind):
    asked = asked_of(request(kind, sounds()))
    good, seen = GOOD[kind](asked), Counter()
    for name, flaw in {**FLAWS[kind], **GENERAL}.items():
        for one in good:
            if spoilt := flaw(one, asked):
                tally = Counter()
                assert sift(read_questions({"questions": [spoilt]}), sounds(), tally, CHECKS) == [], name
                assert tally == {f"questions lost: {CAUGHT[name]}": 1}, (name, spoilt)
                seen[name] += 1
    assert set(seen) == {*FLAWS[kind], *GENERAL}


@pytest.mark.parametrize("wrong", [0, 3])
@pytest.mark.parametrize("kind", GOOD)
def test_what_has_no_flaw_passes(kind, wrong):
    asked, tally = asked_of(request(kind, sounds(), wrong=wrong)), Counter()
    good = {"questions": GOOD[kind](asked)}
    assert len(good["questions"]) > 8
    relations = tuple(RELATIONS) if kind == "temporal" else ()
    assert not mismatch(good, schema((kind,), options=wrong, relations=relations))
    assert len(sift(read_questions(good), sounds(), tally, CHECKS)) == len(good["questions"]), tally
    if relations:
        assert {one["relation"] for one in good["questions"]} == set(RELATIONS)


def test_the_share_of_flaws():
    found = [name for n in range(40) for kind in GOOD for _, name in written(request(kind, sounds(f" {n}.")), kind)]
    share = sum(map(bool, found)) / len(found)
    deviation = (1 / FLAWED * (1 - 1 / FLAWED) / len(found)) ** 0.5
    assert abs(share - 1 / FLAWED) < 4 * deviation
    assert {name for name in found if name} == set(CAUGHT)


def test_how_many_and_of_nothing():
    assert len(RULES["needle"](RuleInput(request("needle", sounds(), pairs=2)))["questions"]) == 2
    nothing = Timeline((Moment(0.0, 10.0, "A man speaks."), Moment(10.0, 40.0, "Nothing.")), (40.0,))
    assert all(RULES[kind](RuleInput(request(kind, nothing)))["questions"] == [] for kind in GOOD)


def test_who_hears_nothing_is_right_by_chance():
    right = 0
    for n in range(300):
        text = prompt_file("blind").fill(question=f"Question {n}? Choose:\n(A) A bell\n(B) A horn\n(C) A dog")
        said = RULES["blind"](RuleInput(text))
        assert said in ("A bell", "A horn", "A dog")
        right += said == "A bell"
    assert 60 < right < 140  # of 100 that are expected, more than four deviations away
    assert RULES["blind"](RuleInput(prompt_file("blind").fill(question="What is heard?")))
