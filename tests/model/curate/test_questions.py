"""Questions: what replies may hold, what each check catches, and what it lets pass; the form of a record."""

from collections import Counter
from dataclasses import replace

import pytest

from afn_model.curate.questions import (
    MOST,
    Question,
    alike,
    answer_in_evidence,
    answer_not_in_question,
    as_record,
    evidence_inside,
    options_alike,
    read_questions,
    schema,
    sift,
    well_put,
)
from afn_model.curate.replies import mismatch
from afn_model.curate.timeline import Moment, Timeline

HEARD = Timeline((Moment(0.0, 10.0, "A dog barks."), Moment(10.0, 20.0, "A bell rings twice.")), (20.0,))
GOOD = Question("k", "What is heard at first?", "A dog", ("A cat", "A horse"), ((1, 0.0, 10.0),))


def told(**changes):
    one = {"kind": "k", "question": "Who?", "answer": "A dog", "wrong": ["A cat"], "evidence": [{"start": 0, "end": 9}]}
    return {"questions": [one | changes]}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, ""),
        ({"kind": "other"}, "none of k"),
        ({"evidence": []}, "0 entries"),
        ({"evidence": [{"start": "0", "end": 9}]}, "no number"),
        ({"wrong": []}, "0 entries"),
        ({"answer": ""}, "0 characters"),
        ({"relation": "during"}, "none of before"),
    ],
)
def test_the_schema_of_replies(changes, wrong):
    form = schema(("k",), options=1, relations=("before",))
    found = mismatch(told(**{"relation": "before"} | changes), form)
    assert wrong in found if wrong else not found
    assert "lacks relation" in mismatch(told(), form)
    assert not mismatch(told(wrong=[]), schema(("k",), options=0))
    assert "lacks clip" in mismatch(told(), schema(("k",), clips=True))


def test_what_replies_hold_that_nobody_asked_for():
    odd = [{"start": 0, "end": 10**400}, {"clip": "two", "start": 0, "end": 9}, {"clip": -1, "start": 0, "end": 9}]
    for span in odd:
        (one,) = read_questions(told(evidence=[span]))
        assert evidence_inside(one, HEARD) == "evidence outside of the recording"
    (one,) = read_questions(told(question=" Who \n barks?", relation="after"))
    assert (one.question, one.relation, one.wrong) == ("Who barks?", "after", ("A cat",))


@pytest.mark.parametrize(
    ("check", "changes", "wrong"),
    [
        (well_put, {"question": "…?"}, "an empty question or answer"),
        (well_put, {"answer": "♪", "wrong": ()}, "an empty question or answer"),
        (well_put, {"question": "<sound> What is it?"}, "marks of prompts"),
        (well_put, {"wrong": ("A cat<|im_end|>",)}, "marks of prompts"),
        (well_put, {"answer": "A \ud800dog"}, "marks of prompts"),
        (well_put, {"answer": "A dog<audio-2>"}, "marks of prompts"),
        (well_put, {"answer": "A \u202edog"}, "marks of prompts"),
        (well_put, {"question": "What barks?" * 200}, "a text that is too long"),
        (well_put, {"question": "What does the second caption tell of?"}, "it tells of captions"),
        (evidence_inside, {"evidence": ((1, 15.0, 5.0),)}, "evidence outside of the recording"),
        (evidence_inside, {"evidence": ((1, 5.0, 5.0),)}, "evidence outside of the recording"),
        (evidence_inside, {"evidence": ((1, 15.0, 20.6),)}, "evidence outside of the recording"),
        (evidence_inside, {"evidence": ((1, 15.0, 20.4),)}, ""),
        (evidence_inside, {"evidence": ((2, 0.0, 5.0),)}, "evidence outside of the recording"),
        (evidence_inside, {"evidence": ((0, 0.0, 5.0),)}, "evidence outside of the recording"),
        (evidence_inside, {"evidence": ()}, "no evidence"),
        (answer_in_evidence, {"evidence": ((1, 10.0, 20.0),)}, "the evidence does not have the answer"),
        (answer_in_evidence, {"question": "Does a dog bark?", "answer": "Yes"}, ""),
        (
            answer_in_evidence,
            {"question": "Does a cat meow?", "answer": "Yes"},
            "the evidence does not have the answer",
        ),
        (answer_in_evidence, {"question": "How often?", "answer": "Twice"}, "the evidence does not have the answer"),
        (answer_in_evidence, {"question": "How often does it bark?", "answer": "Twenty times"}, ""),
        (options_alike, {"wrong": ("A cat", "a DOG.")}, "options twice"),
        (options_alike, {"wrong": ("dog", "cat")}, "options twice"),
        (options_alike, {"wrong": ("A cat", "–")}, "options twice"),
        (options_alike, {"answer": "C", "wrong": ("C#", "D")}, ""),
        (options_alike, {"answer": "A minor", "wrong": ("C minor", "A major")}, ""),
        (options_alike, {"answer": "1.5 s", "wrong": ("15 s", "1:05")}, ""),
        (options_alike, {"answer": "12", "wrong": ("twelve bells ring", "13")}, "options of different kinds"),
        (options_alike, {"answer": "Fourteen", "wrong": ("forty-two", "9 to 10 times", "never")}, ""),
        (options_alike, {"answer": "Yes", "wrong": ("No", "Two")}, "options of different kinds"),
        (options_alike, {"wrong": ("None", "A cat")}, ""),
        (
            options_alike,
            {"wrong": ("A cat", "A horse that gallops over the stones of a bridge")},
            "of different lengths",
        ),
        (options_alike, {"wrong": ("A cat", "All of the above")}, "options with letters or of others"),
        (options_alike, {"answer": "(A) A dog", "wrong": ("(B) A cat",)}, "options with letters or of others"),
        (options_alike, {"wrong": tuple(f"Animal {n}" for n in range(MOST - 1))}, ""),
        (options_alike, {"wrong": tuple(f"Animal {n}" for n in range(MOST))}, "too many options"),
        (options_alike, {"answer": "狗", "wrong": ("一只非常大的老虎在山上叫",)}, "options of different lengths"),
        (options_alike, {"answer": "की", "wrong": ("का", "के")}, ""),
        (answer_not_in_question, {"question": "Why does the dog bark?"}, "the question tells the answer"),
        (answer_not_in_question, {"question": "Is it a dog or a cat?"}, ""),
        (answer_not_in_question, {"question": "Is it a dog or a cat?", "wrong": ()}, ""),
        (answer_not_in_question, {"question": "Is it a hotdog?"}, ""),
        (answer_not_in_question, {"question": "Do two or more bark?", "answer": "Two", "wrong": ()}, ""),
        (answer_not_in_question, {"question": "Why does 狗 bark?", "answer": "狗"}, "the question tells the answer"),
    ],
)
def test_each_check(check, changes, wrong):
    found = check(replace(GOOD, **changes), HEARD)
    assert found.endswith(wrong)
    assert bool(found) == bool(wrong)


def test_answers_in_other_scripts_are_looked_for():
    said = "他说有一只狗在叫。"
    heard = Timeline((Moment(0.0, 10.0, said), Moment(10.0, 20.0, "एक घंटी बजती है।")), (20.0,))
    for answer, place, stands in [("狗叫", 0.0, True), ("猫", 0.0, False), ("घंटी", 10.0, True), ("घोड़ा", 10.0, False)]:
        one = replace(GOOD, answer=answer, evidence=((1, place, place + 9),))
        assert (answer_in_evidence(one, heard) == "") is stands, answer
    assert alike("第一只狗在叫什么?", "第一只狗在叫什么呢?") > 0.8 > alike("第一只狗在叫什么?", "谁在说话?")


def test_what_is_sifted_is_counted_and_the_first_of_two_stays():
    again = replace(GOOD, question="what is heard at FIRST")
    bad = [replace(GOOD, evidence=()), again, replace(GOOD, question="Which bell?", kind="other")]
    tally = Counter()
    further = {"other": [lambda one, heard: "bells"]}
    assert sift([GOOD, *bad], HEARD, tally, further) == [GOOD]
    expected = ("no evidence", "like an earlier one", "bells")
    assert tally == {f"questions lost: {why}": 1 for why in expected}
    assert sift([again], HEARD, Counter(), before=[GOOD]) == []
    assert sift([], HEARD, Counter()) == []


def test_the_right_option_is_anywhere():
    places = Counter()
    for number in range(2000):
        one = replace(GOOD, question=f"Question {number}?", wrong=("A cat", "A horse", "A cow"))
        places[as_record(one, "s", axis="long")["truth"]["options"].index("A dog")] += 1
    expected = 2000 / 4
    assert sum((places[at] - expected) ** 2 / expected for at in range(4)) < 16.3  # chi-square, p = 0.001
    orders = {tuple(as_record(GOOD, str(n), axis="long")["truth"]["options"]) for n in range(50)}
    assert len(orders) == 6  # of equal questions about other recordings
    turned = replace(GOOD, wrong=GOOD.wrong[::-1])
    assert as_record(turned, "s", axis="long") == as_record(GOOD, "s", axis="long")


def test_the_record():
    made = as_record(replace(GOOD, wrong=("A cat",)), "s", axis="long")
    options = made["truth"]["options"]
    assert made["messages"][0]["content"].splitlines()[1:] == [f"(A) {options[0]}", f"(B) {options[1]}"]
    assert made["messages"][1]["content"] == "A dog"
    assert made["rewards"] == [{"kind": "exact", "answer": "A dog"}]
    assert made["truth"]["evidence"] == [{"audio": 1, "start": 0.0, "end": 10.0}]
    free = as_record(replace(GOOD, wrong=()), "s", axis="long", audios=({"start": 0.0, "end": 9.0},))
    assert (free["rewards"], free["truth"]["options"], free["audios"]) == ([], [], [{"start": 0.0, "end": 9.0}])
    assert free["messages"][0]["content"] == GOOD.question


def test_a_reply_has_no_end_of_questions():
    tally, (one,) = Counter[str](), read_questions(told())
    assert len(sift([one] * 10_000, HEARD, tally)) == 1
    assert tally == {"questions lost: beyond the first 50": 9_950, "questions lost: like an earlier one": 49}
