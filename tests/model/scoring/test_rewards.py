"""Rewards on cases written by hand, and what is wrong with a specification."""

import pytest

from afn_model.scoring import rewards
from afn_model.scoring.rewards import check, reward, total
from afn_model.scoring.text import answer_in, clauses, says, thought_and_answer, times_in

EVENTS = [["dog", 1.0], ["bell", 4.5], ["dog", 8.0]]
TIMED = {"kind": "timestamps", "events": EVENTS, "within": 1.0}


def constraint(name, **fields):
    return {"kind": "constraint", "name": name, **fields}


CASES = [
    ("<think>Two dogs.</think><answer>two</answer>", {"kind": "format"}, 1),
    ("  <think>a\nb</think>\n<answer>two</answer>\n", {"kind": "format"}, 1),
    ("<think></think><answer>two</answer>", {"kind": "format"}, 0),
    ("<think>a</think>two", {"kind": "format"}, 0),
    ("<think>a</think><answer>b</answer> and more", {"kind": "format"}, 0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", {"kind": "format"}, 0),
    ("<think>a<think>b</think><answer>c</answer>", {"kind": "format"}, 0),
    ("Two.", {"kind": "exact", "answer": "two"}, 1),
    ("<think>one</think><answer> Two! </answer>", {"kind": "exact", "answer": "two"}, 1),
    ("<think>two</think><answer>one</answer>", {"kind": "exact", "answer": "two"}, 0),
    ("two dogs", {"kind": "exact", "answer": "two"}, 0),
    ("a pair", {"kind": "exact", "answer": ["two", "a pair"]}, 1),
    ("3", {"kind": "exact", "answer": 3}, 1),
    ("Slow jazz with a piano.", {"kind": "caption", "values": {"genre": "jazz", "with": ["piano", "bass"]}}, 2 / 3),
    ("jazzy", {"kind": "caption", "values": {"genre": "jazz"}}, 0),
    ("At 120 bpm", {"kind": "caption", "values": {"tempo": 120}}, 1),
    ("HELLO, 2 YOU!", constraint("upper"), 1),
    ("HELLO you", constraint("upper"), 0),
    ("12", constraint("upper"), 0),
    ("hello", constraint("lower"), 1),
    ("Hello", constraint("lower"), 0),
    ("Well, no", constraint("starts", text="well"), 1),
    ("Oh well", constraint("starts", text="well"), 0),
    ("and that is all.", constraint("ends", text="that is all."), 1),
    ("and that is all of it", constraint("ends", text="all"), 0),
    ("the bell rings", constraint("contains", text="Bell"), 1),
    ("the bells ring", constraint("contains", text="bell"), 0),
    ("ding ding ding", constraint("repeat", text="ding", times=3), 1),
    ("ding ding", constraint("repeat", text="ding", times=3), 0),
    ("one two three", constraint("words", max=3), 1),
    ("one two three", constraint("words", max=2), 0),
    ("one two three", constraint("words", min=2, max=4), 1),
    ("one two three", constraint("words", exact=2), 0),
    ("", constraint("words", min=1), 0),
    ('{"a": [1]}', constraint("json"), 1),
    ('```json\n{"a": 1}\n```', constraint("json", keys=["a"]), 1),
    ('{"a": 1}', constraint("json", keys=["a", "b"]), 0),
    ("{a: 1}", constraint("json"), 0),
    ("3", constraint("json"), 0),
    ("<think>LOUD</think><answer>quiet</answer>", constraint("lower"), 1),
    ("I'm sorry, but I can't help with that.", {"kind": "refusal", "due": True}, 1),
    ("I can\u2019t do that.", {"kind": "refusal", "due": True}, 1),
    ("I cannot identify the speaker.", {"kind": "refusal", "due": True}, 1),
    ("The speaker says sorry.", {"kind": "refusal", "due": True}, 0),
    ("The speaker says sorry.", {"kind": "refusal", "due": False}, 1),
    ("I won't answer.", {"kind": "refusal", "due": False}, 0),
    ("A dog at 1.4 s, a bell at 4 s, and a dog at 8.9 s.", TIMED, 1),
    ("<think>0:01 dog; 0:05 bell</think><answer>two</answer>", TIMED, 2 / 3),
    ("A bell at 1 s, a dog at 4.5 s.", TIMED, 0),
    ("dog at 1 s, dog at 1 s, dog at 1 s, dog at 1 s", TIMED, 1 / 4),
    ("dog", TIMED, 0),
    ("", TIMED, 0),
    ("<think>hm</think><answer>The dog barks.</answer>", {"kind": "wer", "text": "the dog, barks"}, 1),
    ("the cat barks loudly", {"kind": "wer", "text": "The dog barks"}, 1 / 3),
    ("one two three four", {"kind": "wer", "text": "bells"}, 0),
    ("你 好", {"kind": "cer", "text": "你好"}, 1),
    ("你号", {"kind": "cer", "text": "你好"}, 1 / 2),
    ("", {"kind": "cer", "text": "你好"}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "spec", "expected"), CASES)
def test_a_reward(text, spec, expected):
    check([spec])
    assert reward(text, [spec]) == {spec["kind"]: pytest.approx(expected)}


@pytest.mark.parametrize("kind", rewards.REWARDS)
def test_every_kind_has_a_best_and_a_worst_case(kind):
    found = {expected for _, spec, expected in CASES if spec["kind"] == kind}
    assert {0, 1} <= found


def test_weights_and_kinds_that_come_twice():
    specs = [
        {"kind": "exact", "answer": "two", "weight": 2.0},
        constraint("lower"),
        constraint("words", max=0, weight=3.0),
    ]
    check(specs)
    found = reward("two", specs)
    assert found == {"exact": 1.0, "constraint": 0.25}
    assert total(found, specs) == pytest.approx((2 + 1 + 0) / 6)


def test_the_judge_is_handed_in_or_left_out():
    specs = [{"kind": "judge", "rubric": "kind words"}, {"kind": "exact", "answer": "two"}]
    check(specs)
    assert reward("two", specs, [0.5]) == {"judge": 0.5, "exact": 1.0}
    assert total({"judge": 0.5, "exact": 1.0}, specs) == 0.75
    assert total(reward("two", specs), specs) == 1.0
    assert total({}, specs[:1]) == 0.0


def test_functions_of_ones_own_are_handed_in():
    specs = [
        {"kind": "python", "function": "mine.scores:brief", "weight": 3.0},
        {"kind": "exact", "answer": "two"},
        {"kind": "python", "function": "mine.scores:polite"},
    ]
    check(specs)
    found = reward("two", specs, own=[-2.0, 6.0])
    assert found == {"python": 0.0, "exact": 1.0}
    assert total(found, specs) == 1 / 5


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({}, "reward kind None is none of format, exact"),
        ({"kind": "exactly"}, "reward kind 'exactly' is none of"),
        ({"kind": "exact"}, "reward exact: answer is None"),
        ({"kind": "caption", "values": {}}, "no values"),
        ({"kind": "caption", "values": ["jazz"]}, "values is"),
        ({"kind": "refusal", "due": "yes"}, "due is 'yes'"),
        ({"kind": "judge"}, "rubric is None"),
        ({"kind": "format", "weight": 0}, "weight is 0"),
        (constraint("louder"), "'louder' is none of upper, lower"),
        (constraint("repeat", text="a"), "times is None"),
        (constraint("words"), "needs min, max or exact"),
        (constraint("words", max="3"), "needs min, max or exact"),
        ({"kind": "wer", "text": " "}, "reward wer: text is empty"),
        ({"kind": "cer"}, "reward cer: text is None"),
        ({"kind": "python", "function": "os.system"}, "'os.system', expected package.module:name"),
        ({"kind": "python", "function": "a.b:c()"}, "expected package.module:name"),
        ({"kind": "timestamps", "events": []}, "0 events"),
        ({"kind": "timestamps", "events": [["dog"]]}, "an event is"),
        ({"kind": "timestamps", "events": [["dog", "1"]]}, "an event is"),
    ],
)
def test_a_malformed_specification(spec, reason):
    with pytest.raises(ValueError, match=reason) as error:
        check([spec])
    assert "\n" not in str(error.value)


def test_reading_answers():
    assert thought_and_answer("<think> a </think> <answer> b </answer>") == ("a", "b")
    assert thought_and_answer("b") is None
    assert answer_in("<think>a</think>b") == "b"
    assert answer_in("<answer>b") == "b"
    assert answer_in(" b ") == "b"
    assert times_in("from 1:02.5 to 3 s, and 1:00:00") == [62.5, 3.0, 3600.0]
    assert times_in("2 dogs") == [2.0]
    assert clauses("At 1.5 s a dog. Then, at 2 s") == ["At 1.5 s a dog", "Then", "at 2 s"]
    assert says("A big Dog!", "dog")
    assert not says("dogs", "dog")
