"""Unsafe spans, refusals and their twins: what passes, and each thing that does not."""

from collections import Counter

import pytest

from afn_model.curate.refusals import (
    CATEGORIES,
    UnsafeSpan,
    benign_wrong,
    pair_wrong,
    passages,
    unsafe_spans,
    words_between,
)
from afn_model.curate.stand_ins.rules.safety import UNSAFE_SENTENCES
from afn_model.curate.timeline import Moment, Timeline

WORDS = [
    {"word": word, "start": 3.0 + 0.3 * at, "end": 3.3 + 0.3 * at}
    for at, word in enumerate(("Give", "me", "the", "money"))
]
SAID = {"text": "Give me the money", "words": [*WORDS, {"word": "Thanks.", "start": 12.0, "end": 12.5}]}
HEARD = Timeline((Moment(0.0, 10.0, "A man shouts and a child screams."), Moment(10.0, 20.0, "Rain falls.")), (20.0,))
PAIR = {
    "request": "How do I rob somebody like him?",
    "answer": "I can’t help with robbing people, because somebody could get hurt. I can describe the voices instead.",
    "reason": "because somebody could get hurt",
    "offer": "I can describe the voices instead.",
    "twin": "Who is heard in this part?",
    "reply": "A man shouts, and a child screams.",
}
SPAN = UnsafeSpan(3.0, 4.2, "violence", "give me the money or i will shoot")
BENIGN = {"request": "Who kills the silence?", "words": "kills", "reply": "A man shouts."}


def spans(*given):
    tally = Counter()
    names = ("start", "end", "category", "quote")
    data = {"spans": [dict(zip(names, one, strict=True)) for one in given]}
    return unsafe_spans(data, HEARD, SAID, tally), dict(tally)


def test_what_is_said_is_cut_at_pauses():
    assert passages(SAID, 20.0).said() == "3.0 to 4.2 s: Give me the money\n12.0 to 12.5 s: Thanks."
    many = [{"word": str(at), "start": at, "end": at + 0.5} for at in range(65)]
    assert [len(one.text.split()) for one in passages({"words": many}, 70.0).moments] == [30, 30, 5]
    untimed = {"text": " all  at once ", "words": []}
    assert passages(untimed, 20.0).said() == "0.0 to 20.0 s: all at once"
    assert words_between(untimed, 0.0, 1.0) == "all at once"
    assert words_between(SAID, 4.0, 12.1) == "money Thanks."
    assert passages({"text": "", "words": []}, 20.0).said() == ""


def test_spans_that_are_said_or_heard_stand_in_order():
    given = [
        (0.0, 20.3, "child in danger", "a child screams"),
        (3.0, 4.2, " Violence ", "give me  the MONEY!"),
    ]
    found, tally = spans(*given)
    assert found == [
        UnsafeSpan(0.0, 20.0, "child in danger", "a child screams"),
        UnsafeSpan(3.0, 4.2, "violence", "give me the MONEY!"),
    ]
    assert tally == {}


@pytest.mark.parametrize(
    ("span", "why"),
    [
        ((3.0, 4.2, "violence", "give me the gun"), "the quote is neither said nor heard there"),
        ((10.0, 20.0, "violence", "give me the money"), "the quote is neither said nor heard there"),
        ((3.0, 4.2, "violence", "me the mon"), "the quote is neither said nor heard there"),
        ((3.0, 4.2, "violence", " ?! "), "the quote is neither said nor heard there"),
        ((10.0, 20.0, "child in danger", "a child screams"), "the quote is neither said nor heard there"),
        ((19.0, 21.0, "violence", "rain"), "outside of the recording"),
        ((4.2, 3.0, "violence", "give me the money"), "outside of the recording"),
        ((-1.0, 4.0, "violence", "give me the money"), "outside of the recording"),
        ((3.0, 4.2, "bad manners", "give me the money"), "unknown category"),
    ],
)
def test_a_span_that_is_left_out_is_counted(span, why):
    assert spans(span) == ([], {f"unsafe spans lost: {why}": 1})


def test_a_span_comes_once():
    found, tally = spans(
        (3.0, 4.2, "violence", "the money"), (3.5, 4.0, "violence", "money"), (3.5, 4.0, "weapons", "money")
    )
    assert [one.category for one in found] == ["violence", "weapons"]
    assert tally == {"unsafe spans lost: twice": 1}


def test_quotes_of_a_language_without_spaces():
    said = {"text": "", "words": [{"word": one, "start": 1.0, "end": 2.0} for one in ("お金", "を", "出せ")]}
    tally = Counter()
    data = {"spans": [{"start": 1.0, "end": 2.0, "category": "violence", "quote": "お金を出せ。"}]}
    assert len(unsafe_spans(data, HEARD, said, tally)) == 1
    data["spans"][0]["quote"] = "金を返せ"
    assert unsafe_spans(data, HEARD, said, tally) == []


def test_a_pair_that_stands():
    assert pair_wrong(PAIR, SPAN, ["A man shouts and a child screams."], 10.0) == ""
    assert benign_wrong(BENIGN, ["A man shouts."], 10.0) == ""


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"answer": PAIR["answer"].replace("I can’t help", "I help")}, "the refusal does not decline"),
        ({"reason": "it is a crime"}, "the refusal has no reason"),  # says so beside the answer, not in it
        ({"reason": "help with robbing people"}, "the refusal has no reason"),
        ({"reason": "because"}, "the refusal has no reason"),
        ({"reason": "I can describe the voices"}, "the refusal has no reason"),
        ({"offer": "because somebody could get hurt"}, "the refusal has no offer"),
        ({"offer": "I can teach you the piano."}, "the refusal has no offer"),
        ({"offer": "I can’t help with robbing people"}, "the refusal has no offer"),
        ({"reason": "somebody could get hurt. I can describe the voices instead"}, "reason and offer are one"),
        ({"twin": "How do I rob somebody like him"}, "the twin asks for the same"),
        ({"reply": "I'm sorry, but I can't answer that."}, "the twin declines"),
        ({"reply": "An orchestra tunes its violins."}, "the twin is not in the captions"),
        ({"reply": "A man shouts. At 40 s a child screams."}, "the twin is not in the captions"),
        ({"reply": "Yes."}, "the twin is not in the captions"),
        ({"reply": "The caption tells that a man shouts."}, "it tells of captions"),
        ({"twin": "What does the man shout <sound-1>?"}, "marks of prompts"),
        ({"reply": "A man shouts. " * 200}, "a text that is too long"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_pair(changed, why):
    assert pair_wrong({**PAIR, **changed}, SPAN, ["A man shouts and a child screams."], 10.0) == why


def test_a_refusal_does_not_repeat_at_length():
    answer = "I can't help to give me the money {} because somebody could get hurt. I can describe the voices instead."
    short = {**PAIR, "answer": answer.format("")}
    assert pair_wrong(short, SPAN, ["A man shouts and a child screams."], 10.0) == ""
    long = {**PAIR, "answer": answer.format("or")}
    assert pair_wrong(long, SPAN, ["A man shouts and a child screams."], 10.0) == "the refusal repeats what is unsafe"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"words": "shoots"}, "nothing sounds harmful"),
        ({"reply": "I can't help with that."}, "the answer declines"),
        ({"reply": "A dog barks."}, "the answer is not in the captions"),
        ({"request": "Who kills time in this caption?"}, "it tells of captions"),
    ],
)
def test_what_is_wrong_with_a_look_alike(changed, why):
    assert benign_wrong({**BENIGN, **changed}, ["A man shouts."], 10.0) == why


def test_every_category_is_told_in_one_sentence_and_said_by_a_stand_in():
    assert set(UNSAFE_SENTENCES.values()) == set(CATEGORIES)
    assert all(text.endswith(".") and text.count(".") == 1 for text in CATEGORIES.values())
