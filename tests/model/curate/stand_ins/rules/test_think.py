"""The stand-in that writes chains and those that check them."""

from collections import Counter

import pytest

from afn_model.curate.chains import chain_schema
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.replies import mismatch
from afn_model.curate.stand_ins.rules.rule_input import RuleInput
from afn_model.curate.stand_ins.rules.think import FLAWS, NEVER, RULES, guess
from afn_model.curate.timeline import timeline_of
from afn_model.prompt.questions import choose
from tests.model.curate.chained import RANKED, row, told


def asked(name, **data):
    return RuleInput(prompt_file(name).fill(**data))


def test_chains_follow_from_what_is_asked_and_their_flaws_have_their_shares():
    said = timeline_of(row(120.0)).said()
    flawed, shown = Counter(), {repr(told(row(120.0), flaw)): flaw for flaw in ("", *FLAWS)}
    assert len(shown) == 12
    for number in range(320):
        request = asked("think", annotations=f"{said}\n120.0 to 130.0 s: Rain {number}.", count="1")
        reply = RULES["think"](request)
        if number < 20:
            assert not mismatch(reply, chain_schema())
            assert reply == RULES["think"](request)
        flawed[flaw_of(reply["chains"][0])] += 1
    expected = {flaw: 20 for flaw in FLAWS}
    assert abs(flawed[""] - 100) < 40  # of 5 sixteenths; four deviations
    assert all(abs(flawed[flaw] - count) < 18 for flaw, count in expected.items())


def flaw_of(given):
    """Told from the chain alone."""
    steps, said = given["steps"][:-1], " ".join(step["text"] for step in given["steps"])
    concluded = given["steps"][-1]["text"].split('"')[1]
    marks = {
        "no times": "start" not in steps[0],
        "wrong time": steps[0].get("start", 0) > 130,
        "close together": len({step.get("start") for step in steps}) == 1 and "start" in steps[0],
        "too short": len(said.split()) < 100,
        "repetitive": said.count("I keep the moment") > 2 and "start" in steps[0],
        "the caption says": "The caption says" in said,
        "guessable": given["wrong"] == list(NEVER),
        "concludes otherwise": concluded != given["answer"],
        "wrong answer": concluded == given["answer"] != RANKED[-1],
        "hallucinated": said.count("foghorn") > 1,
        "hallucinated once": said.count("foghorn") == 1,
    }
    (found,) = [name for name, there in marks.items() if there] or [""]
    return found


def test_nothing_is_asked_about_what_has_no_order():
    assert RULES["think"](asked("think", annotations="0.0 to 10.0 s: A dog is heard.", count="2")) == {"chains": []}
    several = RULES["think"](asked("think", annotations=timeline_of(row()).said(), count="9"))["chains"]
    assert len(several) == 6  # one less than events whose last places differ


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("From 0.0 to 2.0 seconds a bell is heard, then a woman speaks, so it begins.", "Yes"),
        ("From 0.0 to 2.0 seconds a bell is heard, then a man speaks.", "No"),
        ("A horn is heard.", "No"),
        ("So much for that.", "Yes"),
    ],
)
def test_what_is_heard(step, said):
    bell, word = {"kind": "sound", "label": "bell"}, {"kind": "word", "label": "yes", "voice": "woman"}
    events = [{**bell, "start": 0.0, "end": 0.5}, {**word, "start": 1.0, "end": 1.5}]
    assert RULES["step_heard"](RuleInput(prompt_file("step_heard").fill(step=step), [events])) == said
    texts = [prompt_file("step_heard").fill(step=f"It is {number}.") for number in range(640)]
    deaf = sum(RULES["step_heard"](RuleInput(text, [[]])) == "No" for text in texts)
    assert 2 <= deaf <= 22  # of 10


def test_a_step_written_anew_has_only_what_is_there():
    step = "From 0.0 to 9.0 seconds a foghorn is heard, then a dog is heard, then a bell is heard, as before."
    told_of = {"annotations": "0.0 to 9.0 s: A dog is heard.", "start": "0.0", "end": "9.0", "question": "Which?"}
    anew = RULES["step_rewrite"](asked("step_rewrite", step=step, **told_of))
    assert anew == "From 0.0 to 9.0 seconds a dog is heard, as before. So much is certain."


def test_answers():
    one = row()
    question = choose("Which of these is heard last?", RANKED)
    text = " ".join(step["text"] for step in told(one, "concludes otherwise")["steps"])
    assert RULES["answer_from_chain"](asked("answer_from_chain", chain=text, question=question)) == RANKED[-2]
    assert RULES["answer_from_chain"](asked("answer_from_chain", chain="So?", question=question)) == "none"
    captions = {"annotations": timeline_of(one).said()}
    assert RULES["answer_from_captions"](asked("answer_from_captions", question=question, **captions)) == RANKED[-1]
    assert RULES["answer_from_captions"](asked("answer_from_captions", question="Why?", **captions)) == "unknown"
    assert guess(asked("blind", question=question)) == "unknown"
    assert guess(asked("blind", question=choose("Which?", [NEVER[0], "a dog is heard", NEVER[2]]))) == "a dog is heard"
