"""Chains: how they are read, each check that asks nobody, what the record earns, and the table of yields."""

import random

import pytest

from afn_model.curate.chains import (
    ChainStep,
    as_thought,
    chain_schema,
    entered,
    evidence_apart,
    length_fits,
    lost_by,
    not_read,
    read_chain,
    repeats,
    repetition,
    times_stand,
    unchecked,
    yields,
)
from afn_model.curate.replies import mismatch
from afn_model.curate.timeline import timeline_of
from afn_model.data import records
from afn_model.prompt.questions import THINK
from afn_model.scoring.rewards import check, reward
from tests.model.curate.chained import row, told

ONE = row()
HEARD = timeline_of(ONE)


def having(*steps, question="Who is heard?", answer="a horn", **more):
    """A chain of (text, start, end) or texts."""
    names = ("text", "start", "end")
    listed = [{"text": step} if isinstance(step, str) else dict(zip(names, step, strict=False)) for step in steps]
    return {"question": question, "answer": answer, "steps": listed, **more}


def read(*steps, **more):
    chain, why = read_chain(having(*steps, **more))
    assert chain, why
    return chain


FIRST, LAST = ("A horn is heard.", 0, 10), ("A siren is heard.", 170, 180)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (having(), "no steps"),
        (having(FIRST, (" ", 5, 6), LAST), "no steps"),
        (having(FIRST, "A dog.", LAST), "steps without times"),
        (having(FIRST, "So a horn."), "steps without times"),
        (having(FIRST, ("A dog.", 30), LAST), "steps without times"),
        (having(FIRST, ("A dog.", 30, 30)), "steps with impossible times"),
        (having(FIRST, ("A dog.", 30, 151)), "steps with impossible times"),
        (having(FIRST, LAST, answer=" \n"), "no question or no answer"),
        (having(FIRST, LAST, wrong=["A horn!", "a bell"]), "options twice"),
        (having(FIRST, LAST, question="Is a horn heard?"), "the question tells the answer"),
        (having(FIRST, ("Then </think> it ends.", 50, 60)), "tags in the text"),
        (having(FIRST, LAST, question="What is in <sound-1>?"), "tags in the text"),
    ],
)
def test_what_is_no_chain(wrong, why):
    assert not mismatch({"chains": [wrong]}, chain_schema()) or not wrong["answer"]
    assert read_chain(wrong) == (None, why)


def test_a_chain_is_what_was_told():
    chain = read(FIRST, ("At 172  seconds a\nsiren is heard.", 170, 180), "So a horn is first.", wrong=["a bell"])
    assert chain.question.options == ("a horn", "a bell")
    assert chain.question.evidence == ((1, 0.0, 10.0), (1, 170.0, 180.0))
    assert chain.text.splitlines() == [
        "[0.0 s - 10.0 s] A horn is heard.",
        "[170.0 s - 180.0 s] At 172 seconds a siren is heard.",  # not where the step says that it begins
        "So a horn is first.",
    ]
    assert ChainStep("At 5 seconds a horn is heard.", 0, 10, "a horn").said() == "At 5 seconds a horn is heard."
    assert ChainStep("A horn is heard.", 0, 10, "a horn").said() == "[0.0 s - 10.0 s] A horn is heard."


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((FIRST, LAST), ""),
        ((FIRST, ("A siren is heard.", 170.4, 180.4)), ""),
        ((FIRST, ("A siren is heard.", 171, 181)), "times outside of the recording"),
        ((FIRST, ("A horn is heard.", -1, 5)), "times outside of the recording"),
        ((FIRST, LAST, "It was there at 200 seconds."), "times outside of the recording"),
        ((FIRST, ("A siren is heard.", 10, 20)), "nothing like it is heard at that time"),
        ((FIRST, ("A siren is heard.", 39.5, 49)), ""),  # the caption ends at 40 s
        ((FIRST, ("A siren is heard.", 41.5, 49)), "nothing like it is heard at that time"),
        ((FIRST, LAST, "The siren is heard at 55 s."), "nothing like it is heard at that time"),
        ((FIRST, LAST, "The siren is heard at 0:35 and at 2:52."), ""),
        ((FIRST, ("A foghorn is heard, the ship leaves.", 30, 40)), "nothing like it is heard at that time"),
        ((FIRST, ("A siren is heard, so the chase that they planned is on its way.", 30, 40)), ""),
    ],
)
def test_times_stand_at_captions(steps, why):
    assert times_stand(read(*steps), HEARD) == why


def test_times_without_captions():
    silent = timeline_of({**ONE, "merged": ONE["merged"][:5] + ONE["merged"][8:]})  # none from 50 to 80 s
    assert times_stand(read(FIRST, ("A siren is heard.", 60, 70)), silent) == "times at which nothing is heard"
    assert times_stand(read(FIRST, ("A horn is heard.", 50.5, 55)), silent) == ""


def test_evidence_is_apart_as_the_furthest_two_are():
    rng, seen = random.Random(0), set()
    for _ in range(200):
        starts, apart = [rng.uniform(0, 100) for _ in range(rng.randint(2, 5))], rng.uniform(0, 100)
        steps = [("x", start, start + rng.uniform(0.1, 10)) for start in starts]
        expected = any(later[1] - earlier[2] >= apart for earlier in steps for later in steps)
        assert (evidence_apart(read(*steps), apart) == "") == expected
        assert (evidence_apart(read(*reversed(steps)), apart) == "") == expected
        seen.add(expected)
    assert seen == {True, False}


def test_repetition_is_between_new_and_the_same():
    rng = random.Random(0)
    for _ in range(100):
        words = rng.choices("abcdefg", k=rng.randint(0, 60))
        text = " ".join(words)
        assert 0 <= repetition(text) <= repetition(f"{text} {text}") < 1
        assert repetition(" ".join(f"w{n}" for n in range(len(words)))) == 0
    for times in range(4, 9):
        assert repetition("Again, " * times) == pytest.approx(1 - 1 / (times - 3))


def test_lengths_and_repetition_at_their_limits():
    words = [f"w{n}" for n in range(1000)]
    for count, why in ((149, "too short"), (150, ""), (900, ""), (901, "too long")):
        text = " ".join(words[: count - 1])
        assert length_fits(read((text, 0, 10), ("z", 20, 30))) == why
    for again, why in ((19, ""), (20, "repetition")):  # of 100 sequences
        text = " ".join([*words[: 99 - again], *words[: again + 3]])
        assert repeats(read((text, 0, 10), ("z", 20, 30))) == why


@pytest.mark.parametrize(
    ("text", "read_out"),
    [
        ("The caption says that a horn is heard.", True),
        ("According to the transcript, he leaves.", True),
        ("As described in the text, it rains.", True),
        ("From the timed captions one sees a dog.", True),
        ("The provided information has no bell.", True),
        ("Captions at 10 s mention a bell.", True),
        ("The audio description states that it rains.", True),
        ("A man gives a description of the thief.", False),
        ("She reads a text message aloud, based on the sound of her voice in a hurry.", False),
        ("The speaker explains what a caption is.", False),
        ("At 10 seconds a horn is heard, according to the man a ship's.", False),
    ],
)
def test_who_listens_reads_nothing(text, read_out):
    assert bool(not_read(read((text, 0, 10), LAST))) is read_out


def test_a_record_earns_its_own_rewards():
    rng, timed = random.Random(0), 0
    for flaw in ("", "hallucinated", "repetitive", "wrong answer", "") * 4:
        raw = told(ONE, flaw)
        for step in raw["steps"][:-1]:
            step["event"] = rng.choice([step["event"], "", "nothing of the kind", "the"])
        chain, why = read_chain(raw)
        assert chain, why
        record = as_thought(chain, "x")
        asked, reply = (one["content"] for one in record["messages"])
        check(record["rewards"])
        assert set(reward(reply, record["rewards"]).values()) == {1.0}
        assert {"format", "exact"} <= {one["kind"] for one in record["rewards"]}
        assert asked.endswith(f"\n{THINK}")
        records.check({"id": "x", "source": "s", **record, "audios": []})
        for event, seconds in (each for one in record["rewards"] if "events" in one for each in one["events"]):
            assert any(one.event == event and seconds == one.middle for one in chain.steps)
            timed += 1
    assert timed > 10


def test_an_open_question_is_rewarded_too():
    record = as_thought(read(FIRST, LAST), "x")
    assert record["messages"][0]["content"] == f"Who is heard?\n{THINK}"
    assert record["rewards"] == [{"kind": "format"}, {"kind": "exact", "answer": "a horn"}]  # no events were named


def test_yields():
    tally = {entered("1 a"): 10, lost_by("1 a", "x"): 2, lost_by("1 a", "y"): 1, entered("2 b"): 7, unchecked("2 b"): 7}
    tally |= {entered("3 c"): 7, lost_by("3 c", "x"): 7, "thoughts": 0}
    found = [(one.name, one.entered, one.left, one.checked) for one in yields(tally, ("1 a", "2 b", "3 c"))]
    assert found == [("1 a", 10, 7, True), ("2 b", 7, 7, False), ("3 c", 7, 0, True), ("all filters", 10, 0, True)]
    assert [one.share for one in yields(tally, ("1 a", "3 c"))] == [0.7, 0.0, 0.0]
    assert [one.share for one in yields({}, ("1 a",))] == [0.0, 0.0]
    with pytest.raises(ValueError, match="'1 a' left 7 chains, and 0 came to the next"):
        yields(tally, ("1 a", "4 d"))
