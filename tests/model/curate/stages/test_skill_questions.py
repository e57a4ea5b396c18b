"""Questions about clips: which skills a clip can carry, what is asked, and what an answer is checked for."""

from collections import Counter

import pytest

from afn_model.curate.questions import Question
from afn_model.curate.stage import Context
from afn_model.curate.stages.skill_questions import (
    SkillQuestions,
    as_long_as_evidence,
    as_many_as_evidence,
    events_of,
    heard_in,
    in_order_of_evidence,
    skill_table,
)
from afn_model.curate.stand_ins.rules import clips
from afn_model.curate.timeline import timeline
from tests.model.curate.stages.heard import context

TEXTS = (
    "A bell is heard.",
    "A man speaks, then a bell is heard.",
    "A piano is heard, while a woman speaks.",
    "A dog is heard, then a siren is heard.",
    "A bell is heard.",
    "There is silence, and nothing else is heard.",
)
MIXES = (["sound"], ["speech", "sound"], ["speech", "music"], ["sound"], ["sound"], [])


def row(name="row"):
    segments = [{"id": f"s{at}", "start": 10.0 * at, "end": 10.0 * at + 10} for at in range(6)]
    merged = [
        {"segment": f"s{at}", "text": text, "events": text[:-1].split(", "), "annotation": f"a{at}"}
        for at, text in enumerate(TEXTS)
    ]
    mined = [
        {"id": f"{name} {first}", "start": 10.0 * first, "end": 10.0 * last, "score": 5.0, "segments": listed}
        for first, last in ((0, 2), (1, 4), (3, 5))
        for listed in [[f"s{at}" for at in range(first, last)]]
    ]
    scores = [{"segment": f"s{at}", "mix": mix} for at, mix in enumerate(MIXES)]
    told = {"id": name, "source_id": name, "seconds": 60.0, "spans": []}
    return {**told, "segments": segments, "merged": merged, "scores": scores, "mined": mined}


def parts(given, **options):
    return SkillQuestions(**options).parts(given, Context(None))  # type: ignore[arg-type]


def test_clips_have_the_skills_that_they_can_carry():
    table = {one.name: one for one in skill_table("skills")}
    assert len(table) > 25
    has = {"row 0": {"speech", "sound"}, "row 1": {"speech", "music", "sound"}, "row 3": {"sound"}}
    every = parts(row(), each=100)
    for clip, kinds in has.items():
        names = {one.kinds[0] for one in every if one.subject == clip}
        assert names == {name for name, one in table.items() if one.needs <= kinds}
    four = parts(row())
    assert [one.subject for one in four] == ["row 0"] * 4 + ["row 1"] * 4 + ["row 3"] * 4
    assert four == parts(row())
    drawn = {one.kinds[0] for number in range(40) for one in parts(row(str(number)))}
    assert drawn == set(table)  # each comes up some time
    (only,) = parts(row() | {"mined": row()["mined"][2:]}, skills=("counting", "music_mood"))
    assert only.data == {"skill": "counting", "asked": table["counting"].asked}
    assert only.audios == ({"start": 30.0, "end": 50.0},)
    assert only.heard.said().splitlines()[1] == "10.0 to 20.0 s: A bell is heard."
    assert parts(row() | {"merged": []}) == []


def test_what_is_in_a_clip():
    clip, spans = {"start": 10.0, "end": 20.0}, [{"kind": "singing", "start": 5.0, "end": 10.6}]
    assert heard_in(clip, spans, []) == {"music"}
    assert heard_in(clip, [{**spans[0], "end": 10.4}], []) == {"sound"}  # what else
    assert heard_in(clip, spans, ["speech", "sound"]) == {"speech", "music", "sound"}
    assert (
        events_of([{"text": "x", "events": ["A bell.", "a dog"]}, {"text": "a Bell"}, {"text": "y", "events": []}]) == 3
    )


HEARD = timeline(
    [{"segment": f"s{at}", "text": text} for at, text in enumerate(TEXTS)], row()["segments"], seconds=60.0
)


def told(answer, *evidence):
    return Question("kind", "How many bells?", answer, (), tuple((1, *span) for span in evidence))


@pytest.mark.parametrize(
    ("check", "answer", "evidence", "stands"),
    [
        (as_many_as_evidence, "two times", [(0, 3), (11, 14)], True),
        (as_many_as_evidence, "Twice.", [(11, 14), (0, 3)], True),
        (as_many_as_evidence, "2", [(0, 3), (3.4, 5), (11, 14)], False),
        (as_many_as_evidence, "2", [(0, 9), (4, 9)], False),  # one of them is counted twice
        (as_many_as_evidence, "many", [(0, 3)], False),
        (in_order_of_evidence, "a bell, then a piano, then a dog", [(0, 9), (20, 29), (30, 34)], True),
        (in_order_of_evidence, "a bell, a piano and then a dog.", [(0, 9), (20, 29), (30, 34)], True),
        (in_order_of_evidence, "a piano, then a dog", [(30, 34), (20, 29)], False),
        (in_order_of_evidence, "a dog, then a piano", [(20, 29), (30, 34)], False),
        (in_order_of_evidence, "a dog, then a siren", [(30, 34), (30.4, 39)], False),  # nobody can tell
        (in_order_of_evidence, "a bell, then a piano, then a dog", [(0, 9), (20, 29)], False),
        (in_order_of_evidence, "a bell", [(0, 9)], False),
        (as_long_as_evidence, "about ten seconds", [(0, 4), (10, 16)], True),
        (as_long_as_evidence, "4 s", [(0, 9)], False),
        (as_long_as_evidence, "longer than the bell", [(0, 9)], True),  # states no length
    ],
)
def test_an_answer_agrees_with_its_evidence(check, answer, evidence, stands):
    assert (check(told(answer, *evidence), HEARD) == "") == stands


def asked_of_the_rules(out, given):
    (out / "truth.jsonl").touch()
    found = SkillQuestions().run(given, context(out))
    tally = sum((Counter(one.tally) for one in found), Counter[str]())
    return tally, [product for one in found for product in one.fields["skill_questions"]]


def test_from_clips_to_records(tmp_path):
    """What the rule does wrong now and then is lost and counted."""
    tally, products = asked_of_the_rules(tmp_path, [row(str(number)) for number in range(6)])
    assert len(products) > 30
    assert {name for name in tally if name.startswith("questions lost")} >= {
        "questions lost: evidence outside of the recording",
        "questions lost: the evidence does not have the answer",
        "questions lost: options of different lengths",
    }
    for one in products:
        (audio,), truth, (user, assistant) = one["audios"], one["truth"], one["messages"]
        assert (one["axis"], assistant["content"], len(truth["options"])) == ("skills", truth["answer"], 4)
        assert all(option in user["content"] for option in truth["options"])
        assert all(span["end"] <= audio["end"] - audio["start"] in (20.0, 30.0) for span in truth["evidence"])
        assert len(one["annotations"]) > 1
    for task, count in Counter(one["task"] for one in products).items():
        assert tally[f"questions: {task}"] == count


def test_no_good_question_is_lost_but_to_one_like_it(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "FLAWED", 2**40)
    tally, products = asked_of_the_rules(tmp_path, [row(str(number)) for number in range(2)])
    assert len(products) > 12
    assert {name for name in tally if "lost" in name} <= {"questions lost: like an earlier one"}


def useless(requests):
    return [{"questions": [{"kind": "sarcasm"}]}] * len(requests)


def test_nothing_to_ask_and_nothing_of_use(tmp_path):
    asked = context(tmp_path, call=f"{__name__}:useless")
    found = SkillQuestions(clips="clips").run([row() | {"clips": []}, row() | {"clips": row()["mined"]}], asked)
    assert found[0].fields == {"skill_questions": []}
    assert found[1].fields == {"skill_questions": []}
    assert found[1].tally == {"replies lost: not as asked": 12}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a", "a table of skills is"),
        ("a: [", "no YAML"),
        ("a: {needs: [speech]}", "expected what is asked"),
        ("a: {asked: x, need: []}", "unknown field need"),
        ("a: {asked: x, needs: [noise]}", "needs are some of speech, music, sound"),
        ("a: {asked: x, check: sum}", "check is one of count, order, length"),
        ("a: {asked: x, events: 0}", "events"),
    ],
)
def test_a_table_of_ones_own(tmp_path, text, told):
    path = tmp_path / "own.yaml"
    path.write_text("good: {asked: What is good., check: count}")
    stage = SkillQuestions(table=str(path))
    before = stage.depends()
    assert [one.name for one in skill_table(str(path))] == ["good"]
    path.write_text(text)
    assert stage.depends() != before
    with pytest.raises(ValueError, match=told) as raised:
        SkillQuestions(table=str(path))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="no skill 'x'"):
        SkillQuestions(skills=("x",))
