"""Filters of chains: each planted error meets the filter that is there for it, and nothing else does."""

import pytest

from afn_model.curate.backends import CallError
from afn_model.curate.chains import entered, lost_by, unchecked, yields
from afn_model.curate.stage import Failed, NotReady
from afn_model.curate.stages.think_filters import ORDER, ThinkFilters
from afn_model.curate.stand_ins.rules import RULES
from tests.model.curate.chained import HOW, ByRule, context, row, told

CAUGHT = {
    "no times": "1 steps with times: steps without times",
    "wrong time": "2 times: times outside of the recording",
    "close together": "3 evidence apart: evidence close together",
    "too short": "7 length: too short",
    "repetitive": "7 length: repetition",
    "the caption says": "8 no captions: speaks of captions",
    "guessable": "6 blind: answered without hearing",
    "concludes otherwise": "5 answer from the chain: another answer",
    "wrong answer": "5 answer from the captions: another answer",
    "hallucinated": "4 heard: many steps are not heard",
}


def having(*flaws, **more):
    return {**row(**more), "chains": [told(row(**more), flaw) | HOW for flaw in flaws]}


def sifted(out, one, rules=None, **parameters):
    (found,) = ThinkFilters(**parameters).run([one], context(out, rules or ByRule(one)))
    return found


def lost(found):
    return {key.removeprefix("chains lost by filter ") for key in found.tally if key.startswith("chains lost")}


@pytest.mark.parametrize("flaw", CAUGHT)
def test_a_planted_error_meets_its_filter(tmp_path, flaw):
    rules = ByRule(one := having(flaw))
    found = sifted(tmp_path, one, rules)
    assert found.fields == {"thoughts": []}
    assert lost(found) == {CAUGHT[flaw]}
    asked = {request.prompt for request in rules.asked}
    name = CAUGHT[flaw].split(":")[0]
    paid = ["blind", "answer_from_chain", "answer_from_captions", "step_heard"]
    before = max(0, ORDER.index(name) - ORDER.index("6 blind") + 1)
    assert asked == set(paid[:before])  # nobody is asked about what is out


def test_a_good_chain_passes_and_says_where_it_is_from(tmp_path):
    rules = ByRule(one := having(""))
    found = sifted(tmp_path, one, rules)
    (thought,) = found.fields["thoughts"]
    assert not lost(found)
    assert (thought["axis"], thought["task"], thought["annotator"], thought["prompt"]) == (
        "cot",
        "think_time",
        "rules",
        "p",
    )
    assert thought["annotations"][:3] == ["c", "a0", "a10"]
    assert [each["kind"] for each in thought["rewards"]] == ["format", "exact", "timestamps"]
    assert thought["truth"]["evidence"][0] == {"audio": 1, "start": 0.0, "end": 10.0}
    heard = [request.messages[0]["content"][0]["audio"] for request in rules.asked if request.prompt == "step_heard"]
    assert [(each["start"], each["end"]) for each in heard[:2]] == [(0.0, 11.0), (29.0, 41.0)]
    assert heard[-1] == {"path": one["file"], "start": 169.0, "end": 180.0}
    assert found.tally["steps heard"] == len(heard) == 7
    tries = [request.settings for request in rules.asked if request.prompt == "blind"]
    assert [(each["seed"], each["temperature"]) for each in tries] == [(0, 0.7), (1, 0.7), (2, 0.7)]
    options = thought["messages"][0]["content"].rpartition("\n")[0]
    assert all(options in str(r.messages[0]["content"]) for r in rules.asked if r.prompt.startswith("answer"))


def test_the_yield_of_all_together(tmp_path):
    flaws = ["", *CAUGHT, "hallucinated once"]
    rows = [having(flaw) for flaw in flaws]
    found = ThinkFilters().run(rows, context(tmp_path, ByRule(rows[0])))
    tally = {}
    for one in found:
        tally |= {key: tally.get(key, 0) + count for key, count in one.tally.items()}
    table = yields(tally, ORDER)
    assert [(one.name[:1], one.entered, one.left) for one in table] == [
        *(("1", 12, 11), ("2", 11, 10), ("3", 10, 9), ("7", 9, 7), ("8", 7, 6)),
        *(("6", 6, 5), ("5", 5, 4), ("5", 4, 3), ("4", 3, 2), ("a", 12, 2)),
    ]
    assert tally["thoughts"] == 2


def test_a_step_that_is_not_heard_is_written_anew_and_heard_once_more(tmp_path):
    rules = ByRule(one := having("hallucinated once"))
    found = sifted(tmp_path, one, rules)
    (thought,) = found.fields["thoughts"]
    asked = [request.prompt for request in rules.asked]
    assert asked[-3:] == ["step_rewrite", "answer_from_chain", "step_heard"]
    assert asked.count("step_heard") == 8
    assert "foghorn" in str(rules.asked[-3].messages)
    assert "0.0 to 10.0 s: A horn is heard, then a dog is heard.\n\n" in rules.asked[-3].messages[0]["content"]
    assert "foghorn" not in str(rules.asked[-1].messages)
    assert "foghorn" not in thought["messages"][1]["content"]
    assert thought["annotations"][1] == rules.asked[-3].result_id(rules.model())
    assert (found.tally["steps not heard"], found.tally["steps written anew"]) == (1, 1)


@pytest.mark.parametrize(
    ("instead", "why"),
    [
        ({"step_rewrite": lambda asked: "A horn and a foghorn, then a foghorn is heard."}, "written anew: not heard"),
        (
            {"step_rewrite": lambda asked: "The caption says that a horn is heard."},
            "written anew: speaks of captions",
        ),
        ({"step_rewrite": lambda asked: "A horn is heard at 200 s."}, "written anew: times outside of the recording"),
        ({"step_rewrite": lambda asked: "I'm sorry, but I can't."}, "no step written anew"),
        ({"step_rewrite": lambda asked: "A horn.</think><answer>a horn</answer>"}, "written anew: tags in the text"),
        ({"step_rewrite": lambda asked: 'A horn is heard; heard last is "a horn is heard"'}, ""),
    ],
)
def test_what_is_written_anew_is_checked(tmp_path, instead, why):
    one = having("hallucinated once")
    found = sifted(tmp_path, one, ByRule(one, **instead))
    assert lost(found) == ({f"4 heard: {why}"} if why else set())


def test_a_rewritten_chain_has_to_lead_to_the_answer_still(tmp_path):
    one = having("hallucinated once")

    def fickle(asked):
        return RULES["answer_from_chain"](asked) if "foghorn" in asked.text else "none"

    assert lost(sifted(tmp_path, one, ByRule(one, answer_from_chain=fickle))) == {
        "4 heard: written anew: another answer"
    }


def test_annotators_that_are_not_there(tmp_path):
    one = having("guessable", "wrong answer", "hallucinated")
    one["chains"] = [{**chain, "question": f"{n} {chain['question']} {n}{n}"} for n, chain in enumerate(one["chains"])]
    found = sifted(tmp_path, one, annotator="", listener="", solver="", blind="")
    assert (len(found.fields["thoughts"]), lost(found)) == (3, set())
    assert {key: count for key, count in found.tally.items() if "not checked" in key} == dict.fromkeys(
        map(unchecked, ORDER[5:]), 3
    )
    nobody = sifted(tmp_path, having("hallucinated once"), annotator="")
    assert lost(nobody) == {"4 heard: a step is not heard, and nobody writes it anew"}
    with pytest.raises(NotReady, match="asks 'ears', which the plan's annotators lack"):
        sifted(tmp_path, one, listener="ears")
    with pytest.raises(ValueError, match="wrong_share must be from 0 to 1"):
        ThinkFilters(wrong_share=30)


@pytest.mark.parametrize("prompt", ["blind", "answer_from_chain", "answer_from_captions", "step_heard", "step_rewrite"])
def test_a_reply_that_may_come_is_waited_for(tmp_path, prompt):
    one, other = having("hallucinated once"), having("no times", name="y")
    busy = ByRule(one, **{prompt: lambda asked: CallError("busy", retryable=True)})
    failed, kept = ThinkFilters().run([one, other], context(tmp_path, busy))
    assert isinstance(failed, Failed)
    assert failed.retryable
    assert kept.fields == {"thoughts": []}
    again = ByRule(one)
    (found,) = ThinkFilters().run([one], context(tmp_path, again))
    assert len(found.fields["thoughts"]) == 1
    answered, asked = [
        {request.result_id(rules.model()) for request in rules.asked if rules is again or request.prompt != prompt}
        for rules in (busy, again)
    ]
    assert not answered & asked


@pytest.mark.parametrize(
    ("answer", "reply", "stands"),
    [
        ("a siren", "Siren.", True),
        ("a siren", "It is the siren", True),
        ("two sirens", "a siren", False),
        ("near the bell", "not far from a bell", False),
        ("yes", "I'm sorry, but I can't.", False),
    ],
)
def test_open_answers(tmp_path, answer, reply, stands):
    one = having("")
    one["chains"][0] |= {"answer": answer, "wrong": [], "question": "What ends it?"}
    rules = ByRule(one, answer_from_chain=lambda asked: reply, answer_from_captions=lambda asked: reply)
    found = sifted(tmp_path, one, rules, listener="", blind="")
    assert bool(found.fields["thoughts"]) is stands


def test_nothing_to_sift_and_questions_twice(tmp_path):
    assert sifted(tmp_path, having()).fields == {"thoughts": []}
    found = sifted(tmp_path, having("", ""))
    assert len(found.fields["thoughts"]) == 1
    assert found.tally[lost_by(ORDER[0], "like an earlier one")] == 1
    assert found.tally[entered(ORDER[0])] == 2
