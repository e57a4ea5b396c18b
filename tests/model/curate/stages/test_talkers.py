"""The stage about who speaks: parts of long recordings, places and annotations of products, other words."""

import pytest

from afn_model.curate.annotators import annotators_of
from afn_model.curate.plan import Plan
from afn_model.curate.stage import Context, Failed
from afn_model.curate.stages.talkers import Talkers
from tests.model.curate.test_conversation import said

RULES = "afn_model.curate.stand_ins.truth:answer"


def row(shift=0.0, seconds=40.0):
    """Two who speak in turn; shifted, they speak a second time that much later, in the other order."""
    told = [("a", 1.0, "we will meet at nine"), ("b", 5.0, "nine is too early for me")]
    told += [("b", 5.0 + shift, "then let us say ten"), ("a", 9.0 + shift, "ten it is my friend")] if shift else []
    words = [dict(zip(("word", "start", "end"), word, strict=True)) for _, at, text in told for word in said(text, at)]
    turns = [{"speaker": name, "start": at, "end": at + 2.0} for name, at, _ in told]
    transcript = {"text": "", "language": "en", "words": words, "annotations": ["t"]}
    told = {"speakers": 2, "model": "d", "prompt": "p", "annotation": "d"}
    heard = {"transcript": transcript, "speakers": turns, "diarisation": told}
    return {"id": "r", "source_id": "s", "seconds": seconds, **heard}


def context(out, **told):
    plan = Plan("p", (), annotators={"writer": {"batch": 4, **told}} if told else {})
    return Context(out, "0", annotators_of(plan, out, "0"))


def test_a_recording_as_a_whole(tmp_path):
    (kept,) = Talkers().run([row()], context(tmp_path))
    products = kept.fields["talkers"]
    assert kept.tally == {
        "questions: interruption": 1,
        "questions: speaker_identification": 2,
        "questions: target_speaker_asr": 2,
    }
    assert all((one["audios"], one["annotations"]) == ([{}], ["t", "d"]) for one in products)
    told = {one["truth"].get("utterance") or one["truth"].get("speaker"): one["truth"]["answer"] for one in products}
    assert told["nine is too early for me"] == "Speaker 2"
    assert told["Speaker 1"] == "we will meet at nine"
    assert Talkers().resources.calls == 0
    assert Talkers().depends() == {}


def test_a_long_recording_is_cut_in_pauses_and_numbered_anew(tmp_path):
    (kept,) = Talkers(longest=100.0).run([row(120.0, 160.0)], context(tmp_path))
    products = kept.fields["talkers"]
    places = {tuple(one["audios"][0].values()) for one in products}
    assert len(places) == 2
    assert max(places)[0] == min(places)[1]
    assert 11 < max(places)[0] < 121
    told = {one["truth"].get("speaker"): one for one in products if one["audios"][0]["start"] > 0}
    assert told["Speaker 1"]["truth"]["answer"] == "then let us say ten"  # of b, who is heard first there
    start = told["Speaker 1"]["audios"][0]["start"]
    assert told["Speaker 1"]["truth"]["evidence"][0]["start"] == pytest.approx(125.0 - start)


def test_one_speaker_none_and_no_words(tmp_path):
    alone, none, mute = row(), row(), row()
    alone["speakers"] = alone["speakers"][:1]
    none |= {"speakers": [], "diarisation": {"speakers": 0}, "transcript": {"text": "", "language": "", "words": []}}
    mute["transcript"] = none["transcript"]
    first, second, third = Talkers().run([alone, none, mute], context(tmp_path))
    assert (first.fields, first.tally) == ({"talkers": []}, {"parts with one speaker": 1})
    assert (second.fields, second.tally) == ({"talkers": []}, {"parts with no speaker": 1})
    assert [one["task"] for one in third.fields["talkers"]] == ["interruption"]
    assert third.tally["speakers with words in doubt"] == 2
    with pytest.raises(ValueError, match="most_words"):
        Talkers(least_words=5, most_words=4)


def test_questions_in_other_words(tmp_path):
    (tmp_path / "truth.jsonl").write_text("")
    rows = [row() | {"id": str(at), "source_id": str(at)} for at in range(7)]
    stage, asked = (
        Talkers(annotator="writer"),
        context(tmp_path, call=RULES, options={"truth": str(tmp_path / "truth.jsonl")}),
    )
    found, plain = stage.run(rows, asked), Talkers().run(rows, context(tmp_path))
    changed = left = 0
    for one, other in zip(found, plain, strict=True):
        for said_so, template in zip(one.fields["talkers"], other.fields["talkers"], strict=True):
            assert said_so["messages"][1] == template["messages"][1]
            if said_so["messages"] == template["messages"]:
                left += 1
                assert said_so["annotations"] == ["t", "d"]
            else:
                changed += 1
                assert said_so["messages"][0]["content"].startswith("Listen closely. ")
                assert said_so["annotator"] == RULES
                assert len(said_so["annotations"]) == 3
    assert left == sum(one.tally.get("other words lost: they change the question", 0) for one in found) > 0
    assert changed > 4 * left
    assert stage.resources.calls > 0
    assert stage.depends()


def useless(requests):
    return [{"text": 1}] * len(requests)


def busy(requests):
    return [OSError("busy")] * len(requests)


def test_without_other_words_the_template_stays(tmp_path):
    stage = Talkers(annotator="writer")
    (kept,) = stage.run([row()], context(tmp_path / "a", call=f"{__name__}:useless"))
    assert kept.fields == Talkers().run([row()], context(tmp_path))[0].fields
    assert kept.tally["other words lost: not as asked"] == 5
    asked = context(tmp_path / "b", call=f"{__name__}:busy")
    asked.annotators["writer"].waits = ()
    (failed,) = stage.run([row()], asked)
    assert isinstance(failed, Failed)
    assert failed.retryable
