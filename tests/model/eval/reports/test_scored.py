"""Scores of a run: numbers, ranges where answers are missing, and when the paper's number may stand beside one."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from afn_model.eval import rules
from afn_model.eval.items import AnsweredItem, Item, ItemClip
from afn_model.eval.reports.scored import (
    RunFacts,
    ends,
    groups_of,
    labels,
    number,
    same_model,
    scored,
    target,
    turned,
    verdict,
    why_not,
)
from afn_model.eval.running.ablations import rotate_options
from afn_model.eval.running.clip_digests import ClipDigests
from afn_model.eval.score import RuleError, Score, Tools, ratio
from afn_model.eval.table import BenchmarkRow

ROW = BenchmarkRow(
    name="some",
    title="Some",
    loader="mmau",
    prompt="choose",
    metric="accuracy %",
    scorers=({"name": "official", "rule": "string-match"}, {"name": "strict", "rule": "choices"}),
    items=4,
    groups=("task",),
    targets={"instruct": {"all": 70, "task: sound": 60}, "af3": 50, "other": {"who": "X", "value": 80}},
)
FACTS = RunFacts(asking={"variant": "instruct", "generation": {}, "ablation": ""})


def answers(*texts, **changes):
    """Items about "cat" or "dog", the answer being "dog", each on a recording of its own."""
    found = []
    for place, text in enumerate(texts):
        group = {"task": ("sound", "music")[place % 2]}
        item = Item(f"i{place}", "Which?", (ItemClip(f"{place}.wav"),), ("cat", "dog"), "dog", groups=group)
        found.append(AnsweredItem(replace(item, **changes), text))
    return found


def one(row, answered, tools=None):
    return scored([row], {row.name: answered}, tools or Tools()).benchmarks[row.name]


def test_scorers_stand_side_by_side_and_one_that_cannot_be_used_says_why(monkeypatch):
    monkeypatch.setitem(rules.RULES, "picky", "choices:picky")

    def score(answered, scorer, tools, whole=rules.score):
        if scorer["rule"] == "picky":
            raise RuleError("needs a judge: --judge-url")
        return whole(answered, scorer, tools)

    monkeypatch.setattr(rules, "score", score)
    row = replace(ROW, scorers=(*ROW.scorers, {"name": "judged", "rule": "picky"}))
    result = one(row, answers("dog", "a dog", "cat", "dog"))
    official, strict, judged = result.results
    assert official.value == 75
    assert strict.value in (50, 75)  # whether "a dog" is read is the rule's own affair
    assert official.interval[0] < 75 <= official.interval[1]
    assert official.of("task: sound") == 50
    assert math.isnan(judged.value)
    assert judged.reason == "needs a judge: --judge-url"
    assert official.bounds is None
    scores = scored([row], {"some": result.answered, "other": []}, Tools(), {"other": "no file"})
    assert scores.answered
    assert not scores.complete
    assert scored([row], {"some": result.answered}, Tools()).complete
    assert list(scores.benchmarks) == ["some"]


def test_missing_answers_leave_a_range():
    some = answers("dog", "dog", "cat", None)
    some[3] = replace(some[3], error="cannot be read")
    result = one(ROW, some)
    official, strict = result.results
    assert official.value == pytest.approx(200 / 3), "its quirk: what has no output is left out"
    assert official.bounds == (50, pytest.approx(200 / 3))
    assert strict.bounds == (50, pytest.approx(200 / 3))
    assert (result.errors, result.unasked) == (1, 0)
    assert not scored([ROW], {"some": some}, Tools()).complete
    assert not scored([ROW], {"some": answers("dog", None)}, Tools()).complete
    unasked = one(ROW, answers("dog", None))
    assert (unasked.errors, unasked.unasked) == (0, 1)
    known, hidden = answers("dog"), answers(None, answer=None)
    assert one(ROW, [*known, *hidden]).first.bounds == (100, 100), "nothing is known of hidden answers"
    nothing = one(ROW, answers(None, None)).first.bounds
    assert nothing is not None
    assert nothing[0] == 0
    assert math.isnan(nothing[1])


def test_the_worse_end_of_a_range_is_the_one_that_is_worse(monkeypatch):
    def words(answered, scorer, tools):  # wrong words of ten in each answer
        parts = [None if x.text is None else (float(x.text or 10), 10.0) for x in answered]
        return ratio(answered, parts, scale=100)

    def safe(answered, scorer, tools):  # counts an empty output as right
        return ratio(answered, [(float(x.text in (None, "no")), 1.0) for x in answered], scale=100)

    monkeypatch.setattr(rules, "score", words)
    wer = replace(ROW, metric="WER %", lower=True, scorers=ROW.scorers[:1])
    assert one(wer, answers("1", None)).first.bounds == (55, 10)
    monkeypatch.setattr(rules, "score", safe)
    assert one(ROW, answers("no", "yes", None, answer=None)).first.bounds == (pytest.approx(100 / 3), 50)

    def corpus(answered, scorer, tools):  # no ratio of sums, such as BLEU
        return Score(7.0 * len([x for x in answered if x.text]), [(1.0, 1.0) if x.text else None for x in answered])

    monkeypatch.setattr(rules, "score", corpus)
    assert one(ROW, answers("no", "yes", None)).first.bounds == (14, 14)
    hidden = answers("no", None, answer=None)
    monkeypatch.setattr(rules, "score", lambda answered, *_: ratio(answered, [None] * len(answered)))
    assert math.isnan(one(ROW, hidden).first.bounds[0]), "nothing is known of hidden answers, and nothing is wrong"


def test_what_a_judge_gave_no_grade_leaves_a_range(monkeypatch):
    score = Score(8.0, [(9.0, 1.0), (7.0, 1.0), None], ungraded=1, floor=1.0)
    monkeypatch.setattr(rules, "score", lambda *_: score)
    silent = Score(4.0, [(7.0, 1.0), (1.0, 1.0)], floor=1.0)
    result = one(replace(ROW, metric="1-10"), answers("x", "y", "z"))
    assert result.first.bounds == (pytest.approx(17 / 3), 8)
    assert "the judge gave 1 answers no grade" in why_not(result, FACTS, Tools())
    monkeypatch.setattr(rules, "score", lambda answered, *_: silent if len(answered) > 1 else score)
    missing = one(replace(ROW, metric="1-10"), answers("x", None)).first.bounds
    assert missing == (4, 8), "the lowest grade is 1"
    monkeypatch.setattr(rules, "score", lambda *_: score)
    score.signature = "judge gpt|prompt x v1, own wording"
    assert "the judge is asked in our words" in why_not(result, FACTS, Tools())


def test_a_number_is_reproduced_where_nothing_else_differs():
    result = one(ROW, answers("dog", "dog", "cat", "dog"))
    assert why_not(result, FACTS, Tools()) == []
    assert verdict(result, FACTS, Tools()) == "The paper's number is reproduced: 70 lies in the interval."
    for paper, lower, said in ((10, False, "better"), (10, True, "worse")):
        far = one(replace(ROW, targets={"instruct": paper}, lower=lower), answers(*["dog"] * 4))
        assert verdict(far, FACTS, Tools()) == (
            f"Comparable with the paper: yes; {said} than its 10, beyond the interval."
        )


class NamedJudge:
    def __init__(self, name):
        self.name = name

    def grade(self, prompts, parse, *, system="", repeats=1, **settings):
        raise AssertionError("nothing is judged here")


@pytest.mark.parametrize(
    ("row", "texts", "facts", "reason"),
    [
        ({}, ["dog"] * 4, {"copies": frozenset(["some"])}, "synthetic"),
        ({"targets": {}}, ["dog"] * 4, {}, "no number of it for the variant instruct"),
        ({"targets": {"instruct": {"task: sound": 1}}}, ["dog"] * 4, {}, "sub-scores alone for the variant instruct"),
        ({"items": None}, ["dog"] * 4, {}, "is not known"),
        ({"items": 9000}, ["dog"] * 4, {}, "4 items are not the 9,000"),
        ({}, ["dog", "dog", "cat", None], {}, "1 of 4 items have no answer"),
        ({"judge": "GPT-4o"}, ["dog"] * 4, {}, "the judge is gpt-4o-mini, the paper's is GPT-4o"),
        ({}, ["dog"] * 4, {"prompts": {"some": "choose-letter"}}, "the prompt is 'choose-letter'"),
        ({}, ["dog"] * 4, {"asking": {"generation": {"temperature": 1}}}, "temperature of the generation"),
        ({}, ["dog"] * 4, {"asking": {"model": {"name": "m", "quantize": "nf4"}}}, "released (quantize nf4)"),
        ({}, ["dog"] * 4, {"asking": {"ablation": "noise"}}, "changed on purpose (noise)"),
        ({}, ["dog"] * 4, {"asking": {"variant": "think"}}, "for the variant think"),
        (
            {"targets": {"captioner": 70}},
            ["dog"] * 4,
            {"asking": {"variant": "captioner"}, "reader": "gpt-5"},
            "gpt-5 answers from the captions, in the paper GPT-5.2",
        ),
        ({}, ["dog"] * 4, {"other_files": {"some": ["a.json"]}}, "a.json is not the file"),
        ({"unknown": ("the normaliser is not published",)}, ["dog"] * 4, {}, "the normaliser is not published"),
    ],
)
def test_each_difference_from_the_paper_is_named(row, texts, facts, reason):
    result = one(replace(ROW, **row), answers(*texts))
    facts, tools = replace(FACTS, **facts), Tools(judge=NamedJudge("gpt-4o-mini-2024-07-18"))
    if reason.startswith("the judge"):
        reason = reason.replace("gpt-4o-mini", "gpt-4o-mini-2024-07-18")
    (said,) = why_not(result, facts, tools)
    assert reason in said
    assert verdict(result, facts, tools) == f"Not comparable with the paper: {said}."


def test_hidden_answers_are_no_score():
    result = one(replace(ROW, hidden=True), answers(*["dog"] * 4, answer=None))
    assert result.hidden == 4
    assert why_not(result, FACTS, Tools()) == ["the answers are hidden"]


def test_judges_are_compared_without_their_dates():
    assert same_model("openai/gpt-4o-2024-08-06", "GPT-4o")
    assert same_model("gpt 5", "GPT-5")
    assert not same_model("gpt-4o-mini", "GPT-4o")
    assert not same_model("gpt-5.2", "GPT-5")


def test_scorers_that_disagree_are_flagged_beyond_a_point(monkeypatch):
    values = {"official": 50, "strict": 52, "other": 90}

    def score(answered, scorer, tools):
        return ratio(answered, [(values[scorer["name"]], 100.0)] * len(answered), scale=100)

    monkeypatch.setattr(rules, "score", score)
    row = replace(ROW, scorers=(*ROW.scorers, {"name": "other", "rule": "f1"}))
    assert one(row, answers("dog")).disagreements() == [("official", "strict", 2.0)]
    values["strict"] = 51
    assert one(row, answers("dog")).disagreements() == []


def test_turned_options_have_a_mean_and_a_worst():
    items = rotate_options([one.item for one in answers("", "")], Path(), 0, ClipDigests(Path("none")))
    result = one(
        ROW, [AnsweredItem(item, said) for item, said in zip(items, ("dog", "cat", "dog", "dog"), strict=True)]
    )
    found = turned(result, result.first)
    assert found is not None
    assert (found.each, found.mean, found.worst, found.always) == ((100, 50), 75, 50, 50)
    assert groups_of(result) == ["rotation: 0", "rotation: 1", "task: music", "task: sound"]
    plain = one(ROW, answers("dog"))
    assert turned(plain, plain.first) is None


def test_questions_that_are_asked_several_times_count_once():
    some = [replace(x, item=replace(x.item, extra={"of": "q"})) for x in answers("dog", "dog", "dog", "dog")]
    assert why_not(one(replace(ROW, items=1), some), FACTS, Tools()) == []


def test_targets_and_scales():
    assert target(ROW, "instruct") == 70
    assert target(ROW, "instruct", "task: sound") == 60
    assert target(ROW, "af3") == 50
    assert target(ROW, "other") == 80
    assert all(math.isnan(target(ROW, *what)) for what in [("think",), ("af3", "task: sound"), ("instruct", "task: x")])
    assert [ends(metric) for metric in ("accuracy %", "BLEU", "1-10", "0-100", "CIDEr")] == [
        (0, 100),
        (0, 100),
        (1, 10),
        (0, 100),
        (0, 1),
    ]


def test_rows_that_share_a_title_are_told_apart():
    names = {"a-b-clean": "LS", "a-b-other": "LS", "mmar": "MMAR", "x": "X", "y": "X"}
    rows = [replace(ROW, name=name, title=title) for name, title in names.items()]
    told = {"a-b-clean": "LS (clean)", "a-b-other": "LS (other)", "mmar": "MMAR", "x": "X (x)", "y": "X (y)"}
    assert labels(rows) == told


def test_numbers_are_as_long_as_their_metric_needs():
    assert [number(1.5, "WER %"), number(0.5, "CIDEr"), number(-2, "BLEU", "+"), number(math.nan, "BLEU")] == [
        "1.50",
        "0.500",
        "-2.00",
        "",
    ]


def test_a_rule_that_fails_costs_no_other_its_score(monkeypatch):
    monkeypatch.setattr(rules, "score", failing_for("strict", rules.score))
    result = one(ROW, answers("dog"))
    assert result.first.score is not None
    assert [by.reason for by in result.results if by.name == "strict"] == ["the rule failed, TypeError: too strange"]


def failing_for(name, score):
    def failing(answered, scorer, tools):
        if scorer["name"] == name:
            raise TypeError("too strange")
        return score(answered, scorer, tools)

    return failing
