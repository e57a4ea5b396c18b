"""Chats: turns that stand, what ends one, when clips are heard, and a share of the recordings."""

import re

import pytest

from afn_model.curate.clip_groups import heard_in
from afn_model.curate.questions import Question
from afn_model.curate.stage import Kept
from afn_model.curate.stages.chat import ChatStage, wrong_turn
from afn_model.data.records import check
from tests.model.curate.pooled import clip, pool, row, rules, saying

DOG = clip("dog", "A dog barks in a park.", 'A man speaks. The words are "seven trains".')
SEA = clip("sea", "Waves roll onto a beach.", "A siren wails.")
OWN = row("dog", pool(DOG, [SEA], [clip("bar", "A piano plays.")]))


def turn(question, answer, needs="audio", evidence=((1, 0, 10),)):
    spans = [{"clip": clip, "start": start, "end": end} for clip, start, end in evidence]
    return {"question": question, "answer": answer, "needs": needs, "evidence": spans}


GOOD = [
    turn("What is the first sound?", "A dog barks."),
    turn("What does the man say?", "The words are seven trains.", "extraction", [(1, 10, 20)]),
    turn("Where does that first sound come from?", "It comes from a park, where dogs bark."),
    turn("Why do such animals do this?", "To warn others.", "knowledge", []),
]


def said(folder, turns, **options):
    (kept,) = ChatStage(**{"share": 1.0, "clips": 1, **options}).run([OWN], saying(folder, {"turns": turns}))
    return kept


def test_a_chat_that_stands(tmp_path):
    kept = said(tmp_path, GOOD)
    (chat,) = kept.fields["chats"]
    assert kept.tally == {"chats": 1, "turns": 4}
    assert [one["role"] for one in chat["messages"]] == ["user", "assistant"] * 4
    assert chat["messages"][0]["content"] == "<sound>\nWhat is the first sound?"
    assert [one["needs"] for one in chat["truth"]["turns"]] == ["audio", "extraction", "audio", "knowledge"]
    assert chat["audios"] == [{name: DOG[name] for name in ("source_id", "start", "end")}]
    assert chat["annotations"][1:] == DOG["annotations"]


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        (turn("And then?", "A man speaks.", evidence=[(1, 10, 20)]), ""),
        (turn("Why do they?", "Nobody knows.", "knowledge", []), ""),
        (turn("And then?", "A helicopter lands."), "the evidence does not have the answer"),
        (turn("And then?", "A dog barks.", evidence=[(1, 10, 20)]), "the evidence does not have the answer"),
        (turn("And then?", "A dog barks.", evidence=[(1, 0, 99)]), "evidence outside of the recording"),
        (turn("Who?", "A man.", evidence=[(2, 0, 5)]), "evidence outside of the recording"),
        (turn("And then?", "A dog.", evidence=[]), "no evidence"),
        (turn("Why that?", "Nobody knows.", "knowledge", [(1, 50, 60)]), "evidence outside of the recording"),
        (turn("...", "A dog."), "an empty question or answer"),
        (turn("Why?", "?", "knowledge", []), "an empty question or answer"),
        (turn("Why that?", "Nobody <sound-1> knows.", "knowledge", []), "marks of prompts"),
        (turn("What is in clip 2?", "A dog."), "a clip that does not exist"),
        (turn("What does the caption say?", "A dog."), "it tells of captions"),
        (GOOD[0], "like an earlier one"),
    ],
)
def test_what_is_wrong_with_a_turn(asked, wrong):
    before = [as_question(one) for one in GOOD]
    assert wrong_turn(as_question(asked), heard_in([DOG]), before) == wrong


def as_question(one):
    evidence = tuple((part["clip"], float(part["start"]), float(part["end"])) for part in one["evidence"])
    return Question(one["needs"], one["question"], one["answer"], evidence=evidence)


def test_a_wrong_turn_ends_a_chat(tmp_path):
    jet = turn("And then?", "A jet.")
    for number, (turns, lost, left) in enumerate(
        (
            ([*GOOD[:3], jet, GOOD[3], GOOD[0]], "turns lost: after one that is lost", 3),
            ([GOOD[0], jet, *GOOD[2:]], "chats lost: too few turns", 0),
            (GOOD[1:], "chats lost: too few turns that need audio", 0),
            ([], "chats lost: too few turns", 0),
        )
    ):
        kept = said(tmp_path / str(number), turns)
        assert kept.tally[lost] == (2 if left else 1)
        assert sum(len(chat["messages"]) for chat in kept.fields["chats"]) == 2 * left
        assert kept.tally.get("turns", 0) == left


def test_replies_that_are_of_no_use_cost_no_recording(tmp_path):
    refused = ChatStage(share=1.0).run([OWN], saying(tmp_path / "a", "I'm sorry, but I can't help with that."))
    assert refused == [Kept({"chats": []}, {"chats lost: refused": 1})]
    many = said(tmp_path / "b", GOOD * 3)
    assert (many.fields, many.tally) == ({"chats": []}, {"chats lost: not as asked": 1})
    assert ChatStage(share=1.0).run([row("x", None)], rules(tmp_path / "c")) == [Kept({"chats": []})]
    for wrong in ({"share": 0}, {"share": 2}, {"clips": 5}, {"turns": 11}, {"least": 1}, {"least": 5, "turns": 4}):
        with pytest.raises(ValueError, match=r"share|clips|turns|least"):
            ChatStage(**wrong)


def test_the_rules_in_any_order_of_rows(tmp_path):
    what = ["bell", "dog", "horn", "siren", "cat", "drum", "harp", "train", "owl", "saw", "door", "car"]
    clips = [clip(one, f"A {one} is heard.", f'A man speaks. The words are "the {one} again".') for one in what]
    rows = [row(one, pool(clips[n], clips[:n], clips[n + 1 :])) for n, one in enumerate(what)]
    kept = ChatStage(share=1.0).run(rows, rules(tmp_path))
    assert ChatStage(share=1.0).run(rows[3::-1], rules(tmp_path / "b"))[::-1] == kept[:4]
    chats = [one for some in kept for one in some.fields["chats"]]
    assert {len(one["audios"]) for one in chats} == {1, 2, 3, 4}
    late = 0
    for chat in chats:
        check({**chat, "audios": [{**one, "path": one["source_id"]} for one in chat["audios"]]})
        asked = [one["content"] for one in chat["messages"] if one["role"] == "user"]
        for number in range(1, 1 + len(chat["audios"]) * (len(chat["audios"]) > 1)):
            (place,) = [n for n, text in enumerate(asked) if f"<sound-{number}>" in text]
            late += place > 0
            used = [
                n for n, one in enumerate(chat["truth"]["turns"]) if number in [e["audio"] for e in one["evidence"]]
            ]
            named = [n for n, text in enumerate(asked) if re.search(rf"clip {number}\b", text)]
            assert place <= min(used + named, default=0)
    assert late
    assert {name for one in kept for name in one.tally if "lost" in name} >= {
        "turns lost: evidence outside of the recording",
        "turns lost: the evidence does not have the answer",
    }
    drawn = [bool(one.fields["chats"] or one.tally) for one in ChatStage(share=0.5).run(rows, rules(tmp_path))]
    assert 0 < sum(drawn) < len(rows)
