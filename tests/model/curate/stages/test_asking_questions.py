"""Stages that ask for questions: what becomes of replies that are odd, late, useless or right without hearing."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from afn_model.curate.plan import Plan
from afn_model.curate.questions import Question
from afn_model.curate.requests import AnnotationResponse
from afn_model.curate.stage import Context, Failed, Kept, NotReady
from afn_model.curate.stages.asking_questions import QuestionPart, QuestionStage, says_answer
from afn_model.curate.timeline import timeline_of

GOOD = {
    "kind": "sound",
    "question": "What is heard at first?",
    "answer": "A bell",
    "wrong": ["A horn", "A drum"],
    "evidence": [{"start": 0.0, "end": 5.0}],
}
OTHER = {**GOOD, "question": "Which animal can be heard?", "answer": "A dog", "evidence": [{"start": 11, "end": 19}]}
ROW = {
    "id": "r",
    "source_id": "s",
    "seconds": 20.0,
    "segments": [{"id": "a", "start": 0.0, "end": 10.0}, {"id": "b", "start": 10.0, "end": 20.0}],
    "merged": [
        {"segment": "a", "text": "A bell.", "annotation": "1"},
        {"segment": "b", "text": "A dog.", "annotation": "2"},
    ],
}


@dataclass(frozen=True)
class ToldSounds(QuestionStage):
    """Two requests a row: about the whole, and about its second half."""

    name: ClassVar[str] = "sounds"
    writes: ClassVar[tuple[str, ...]] = ("sounds",)
    prompt: str = "merge_whole"

    def parts(self, row, context):
        heard = timeline_of(row)
        halves = [heard, heard.part(10.0, 20.0)] if heard.moments else []
        return [QuestionPart(f"{row['id']}{n}", one, "merge_whole", ("sound",), "long") for n, one in enumerate(halves)]


def answering(*said, blind=()):
    """A context whose writer gives the replies in turn, and who is asked without hearing those of ``blind``."""

    def response(one, number):
        if isinstance(one, AnnotationResponse):
            return one
        return AnnotationResponse(f"id{number}", "", one, "m", 1, 1, 0.0)

    def turn(listed):
        return lambda asked: [response(listed[n % len(listed)], n) for n, _ in enumerate(asked)]

    return Context(None, annotators={"writer": turn(said), "guesser": turn(blind or ("",))})


def error(said, retryable=False):
    return AnnotationResponse("e", "", None, "m", 1, 1, 0.0, said, retryable)


def one(stage, context, row=ROW):
    (found,) = stage.run([row], context)
    return found


def test_products_say_how_they_were_made():
    kept = one(ToldSounds(), answering({"questions": [GOOD, OTHER]}, {"questions": []}))
    first, second = kept.fields["sounds"]
    assert kept.tally == {"questions: sound": 2}
    assert (first["axis"], first["task"], first["annotator"], first["audios"]) == ("long", "sound", "m", [{}])
    assert first["annotations"] == ["id0", "1", "2"]
    assert second["truth"]["evidence"] == [{"audio": 1, "start": 11.0, "end": 19.0}]
    assert "weak" not in first


def test_a_second_request_is_checked_against_its_own_part_and_not_asked_the_same():
    shifted = {**OTHER, "question": "What barks?", "evidence": [{"start": 1, "end": 9}]}
    again = {**shifted, "question": GOOD["question"]}
    kept = one(ToldSounds(), answering({"questions": [GOOD, OTHER]}, {"questions": [OTHER, GOOD, shifted, again]}))
    assert [product["messages"][1]["content"] for product in kept.fields["sounds"]] == ["A bell", "A dog", "A dog"]
    lost = ("evidence outside of the recording", "the evidence does not have the answer", "like an earlier one")
    assert kept.tally == {"questions: sound": 3, **{f"questions lost: {why}": 1 for why in lost}}


def test_replies_that_do_not_come_or_are_of_no_use():
    some = one(ToldSounds(), answering({"questions": [GOOD]}, error("refused")))
    assert some.tally == {"questions: sound": 1, "replies lost: refused": 1}
    none = one(ToldSounds(), answering(error("refused"), error("not as asked: x")))
    assert none == Kept({"sounds": []}, {"replies lost: not as asked": 1, "replies lost: refused": 1})
    late = one(ToldSounds(), answering({"questions": [GOOD]}, error("busy", True)))
    assert late == Failed("1 of 2 replies are missing: busy", True)
    empty = one(ToldSounds(), answering(error("never asked")), {**ROW, "merged": []})
    assert empty == Kept({"sounds": []}, {})
    with pytest.raises(NotReady, match="asks 'nobody'"):
        one(ToldSounds(annotator="nobody"), answering({}))


@pytest.mark.parametrize(
    ("said", "weak", "lost"),
    [
        (("A bell", "a BELL.", "A horn"), True, 0),
        (("A bell", "A horn", "A drum"), False, 0),
        (("It is a bell or a horn",), False, 0),
        (("A bell", error("refused"), error("refused")), False, 2),
        (({"answer": "A bell"}, None, ["A bell"]), False, 0),
        ((error("empty"),), False, 3),
    ],
)
def test_what_is_answered_without_hearing_is_weak(said, weak, lost):
    stage = ToldSounds(blind="guesser")
    kept = one(stage, answering({"questions": [GOOD]}, {"questions": []}, blind=said))
    (product,) = kept.fields["sounds"]
    assert product.get("weak", False) is weak
    assert kept.tally.get("questions answered without hearing", 0) == weak
    assert sum(count for name, count in kept.tally.items() if name.startswith("replies without hearing lost")) == lost
    late = one(stage, answering({"questions": [GOOD]}, {"questions": []}, blind=("A bell", error("busy", True))))
    assert late == Failed("1 of 3 replies are missing: busy", True)


def test_tries_without_hearing_differ_and_see_no_captions():
    asked, context = [], answering({"questions": [GOOD]}, {"questions": []}, blind=("no",))
    ask = context.annotators["guesser"]
    context.annotators["guesser"] = lambda requests: asked.extend(requests) or ask(requests)
    one(ToldSounds(blind="guesser", tries=2), context)
    assert [request.settings["seed"] for request in asked] == [0, 1]
    assert all(request.settings["temperature"] > 0 for request in asked)
    assert len({request.result_id({}) for request in asked}) == 2
    text = asked[0].messages[0]["content"]
    assert text.startswith("What is heard at first? Choose")
    assert "captions" not in text


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("(B)", True),
        ("a", False),
        ("(B) a bell", True),
        ("Z", False),
        ("", False),
        ("A bell and a horn", False),
        ("A hornbell", False),
        ("I think it is the bell.", True),
    ],
)
def test_replies_are_read_by_words_and_letters(reply, right):
    asked = Question("sound", "What?", "A bell", ("A horn", "A bell and a horn"))
    assert says_answer(reply, asked, ("A horn", "A bell", "A bell and a horn")) is right


def test_options_within_options_and_notes():
    whole = Question("k", "Who?", "A woman", ("A man",))
    assert not says_answer("a man or a woman", whole)
    assert says_answer("a woman", whole)
    note = Question("k", "Which note?", "C", ("C#", "A"))
    assert says_answer("C", note, ("A", "C#", "C"))
    assert not says_answer("C#", note, ("A", "C#", "C"))
    assert says_answer("the bell", replace(whole, answer="bell", wrong=()))


def test_parameters_and_what_outcomes_depend_on():
    with pytest.raises(ValueError, match="no prompt 'nowhere'"):
        ToldSounds(prompt="nowhere")
    with pytest.raises(ValueError, match="tries"):
        ToldSounds(tries=0)
    assert ToldSounds().depends() != ToldSounds(blind="guesser").depends()
    known = {"writer": {"call": "a:b"}, "guesser": {"call": "a:b"}, "other": {"call": "a:b"}}
    keys = [
        Plan("p", (ToldSounds(blind="guesser"),), annotators={**known, name: {"call": "a:c"}}).keys["sounds"]
        for name in ("writer", "guesser", "other", "another")
    ]
    assert len(set(keys)) == 3  # annotators that the stage does not ask change nothing
