"""Questions over several clips: what each kind is checked for, groups, and what the rules' flaws become."""

import pytest

from afn_model.curate.clip_groups import heard_in
from afn_model.curate.questions import Question
from afn_model.curate.stage import Kept
from afn_model.curate.stages.multi_audio import CHECKS, MultiAudio
from afn_model.curate.stand_ins.rules import pools
from afn_model.data.records import check
from tests.model.curate.pooled import clip, pool, row, rules, saying

DOG = clip("dog", "A dog barks in a park.", "A man speaks, then a train passes.")
SEA = clip("sea", "Waves roll onto a beach and a man speaks.", "A siren wails.")
BAR = clip("bar", "A piano plays while a man speaks.")
HEARD = heard_in([DOG, SEA, BAR])
ONE, TWO, THREE, WAIL = (1, 0.0, 10.0), (2, 0.0, 10.0), (3, 0.0, 10.0), (2, 10.0, 20.0)
SAME = "what differs is the same in the clips"
NO_CLIP, FEW, SEVERAL = "the answer is no clip", "evidence in too few clips", "what is asked for is in several clips"


@pytest.mark.parametrize(
    ("kind", "question", "answer", "evidence", "wrong"),
    [
        ("which_clip", "Which clip contains a barking dog?", "clip 1", (ONE,), ""),
        ("which_clip", "Which clip contains a barking dog?", "clip 2", (TWO,), "what is asked for is not in the clip"),
        ("which_clip", "Which clip has a man who speaks?", "clip 1", (ONE,), SEVERAL),
        ("which_clip", "Which clip has a trombone?", "clip 1", (ONE,), "what is asked for is not in the clip"),
        ("which_clip", "Which clip contains a barking dog?", "a dog", (ONE,), NO_CLIP),
        ("which_clip", "Which clip contains a barking dog?", "clip 1 or clip 2", (ONE,), NO_CLIP),
        ("which_clip", "Which clip contains a barking dog?", "clip 1", (TWO,), FEW),
        ("compare", "How do clip 1 and clip 2 compare?", "a dog barks, waves roll", (ONE, TWO), ""),
        ("compare", "How do clip 1 and clip 2 compare?", "a dog barks, waves roll", (ONE, THREE), FEW),
        ("compare", "How do the clips compare?", "a dog barks, waves roll", (ONE, TWO), FEW),
        ("difference", "What does clip 2 have and clip 3 not?", "waves", (TWO, THREE), ""),
        ("difference", "What does clip 2 have and clip 3 not?", "a man", (TWO, THREE), SAME),
        ("common", "What do all have in common?", "a man speaks", (ONE, TWO, THREE), ""),
        ("common", "What do all have in common?", "a man speaks", (ONE, TWO), FEW),
        ("common", "What do clips 1 and 2 have in common?", "a dog", (ONE, TWO), "what is common is not in every clip"),
        ("order", "In which order do these come?", "dog, waves, piano", (ONE, TWO, THREE), ""),
        ("order", "In which order do these come?", "dog, then siren", (ONE, WAIL), ""),
        ("order", "In which order do these come?", "siren, dog", (WAIL, ONE), "the order is wrong"),
        ("order", "In which order do these come?", "siren, dog", (ONE, WAIL), "the order is wrong"),
        ("order", "In which order do these come?", "dog", (ONE, TWO), "the order has not one place for each thing"),
        ("order", "In which order do these come?", "dog, man", (ONE, TWO), SEVERAL),
    ],
)  # fmt: skip
def test_what_each_kind_is_checked_for(kind, question, answer, evidence, wrong):
    one = Question(kind, question, answer, evidence=evidence)
    assert next(filter(None, (check(one, HEARD) for check in CHECKS[kind])), "") == wrong


def test_groups_of_a_pool(tmp_path):
    similar, other = [[clip(f"{kind}{n}", f"A {kind}{n}.") for n in range(8)] for kind in ("dog", "horn")]
    parts = MultiAudio().parts(row("own", pool(DOG, similar, other)), rules(tmp_path))
    assert [len(part.audios) for part in parts] == [2, 3, 4, 2, 3]
    sources = [one["source_id"] for part in parts for one in part.audios]
    assert sources.count(DOG["source_id"]) == 5
    assert len(sources) - 5 == len(set(sources)) - 1 == 9
    assert len({part.subject for part in parts}) == 5
    few = MultiAudio(groups=9).parts(row("own", pool(DOG, similar[:2])), rules(tmp_path))
    assert [len(part.audios) for part in few] == [2, 2]
    assert parts[0].audios[0].keys() == {"source_id", "start", "end"}
    for none in (None, pool(DOG)):
        assert MultiAudio().run([row("own", none)], rules(tmp_path)) == [Kept({"multi_audio": []})]


def test_the_rules_and_what_becomes_of_their_flaws(tmp_path, monkeypatch):
    what = [("bell", "train"), ("dog", "owl"), ("horn", "harp"), ("siren", "saw"), ("cat", "door"), ("drum", "car")]
    clips = [clip(one, f"A {one} is heard, then a man speaks.", f"A {then} is heard.") for one, then in what]
    texts = {one["source_id"]: " ".join(said["text"].lower() for said in one["captions"]) for one in clips}
    rows = [row(f"n{n}", pool(one, clips[:n], clips[n + 1 :])) for n, one in enumerate(clips[:4])]
    kept = MultiAudio().run(rows, rules(tmp_path))
    products = [product for one in kept for product in one.fields["multi_audio"]]
    assert {product["task"] for product in products} == set(CHECKS)
    for product in products:
        check({**product, "audios": [{**one, "path": one["source_id"]} for one in product["audios"]]})
        asked = product["messages"][0]["content"]
        assert all(asked.count(f"<sound-{n}>") == 1 for n in range(1, len(product["audios"]) + 1))
        assert len(product["annotations"]) == 1 + len(product["audios"])
        if product["task"] == "which_clip":  # its thing is in that clip alone, by the captions that it was made from
            thing = asked.partition("heard: ")[2].partition("?")[0]
            has = [n for n, one in enumerate(product["audios"], 1) if thing in texts[one["source_id"]]]
            assert [f"clip {n}" for n in has] == [product["truth"]["answer"]]
            assert product["rewards"] == [{"kind": "exact", "answer": product["truth"]["answer"]}]
    lost = {name for one in kept for name in one.tally if name.startswith("questions lost")}
    assert lost >= {
        f"questions lost: {why}"
        for why in ("a clip that does not exist", "evidence outside of the recording", FEW, SEVERAL)
    }
    monkeypatch.setattr(pools, "_flawed", lambda one, drawn, said: one)
    kept = MultiAudio().run(rows[:2], rules(tmp_path / "flawless"))
    assert not [name for one in kept for name in one.tally if "lost" in name]
    assert [len(one.fields["multi_audio"]) for one in kept] == [3 * len(CHECKS)] * 2


def test_the_same_question_about_other_clips_is_another_one(tmp_path):
    asked = {"kind": "common", "question": "What do all have in common?", "answer": "a man speaks"}
    asked["evidence"] = [{"clip": n, "start": 0, "end": 10} for n in (1, 2)]
    own = row("own", pool(BAR, [SEA, clip("x", "A man speaks.")]))
    (kept,) = MultiAudio(groups=3).run([own], saying(tmp_path, {"questions": [asked, asked]}))
    assert kept.tally == {"questions lost: like an earlier one": 2, "questions: common": 2}
    assert kept.fields["multi_audio"][0]["messages"][1]["content"] == "a man speaks"
    (none,) = MultiAudio().run([own], saying(tmp_path / "b", "no questions"))
    assert none == Kept({"multi_audio": []}, {"replies lost: no JSON": 2})
    for wrong in ({"groups": 0}, {"count": 0}, {"prompt": "none"}):
        with pytest.raises(ValueError, match=r"groups|count|no prompt"):
            MultiAudio(**wrong)
