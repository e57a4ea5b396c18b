"""Scores: as many events as the truth has, the busiest is mined first, and what no score can be is left out."""

import random

import pytest

from afn_model.curate.stage import Failed
from afn_model.curate.stages.captions import SegmentCaptions
from afn_model.curate.stages.informative import Informative
from afn_model.curate.stages.merge import Merge
from afn_model.curate.stages.mine import Mine
from afn_model.curate.stand_ins.rules import clips
from tests.model.curate.stages.heard import context, row

LABELS = ("bell", "siren", "dog", "rain", "engine", "bird", "thunder")


def scene(rng, start):
    """(events of ten seconds, how many are different, how many of those overlap with another)."""
    labels = rng.sample(LABELS, rng.randint(1, 5))
    times = [(start + (at := rng.uniform(0, 8)), start + min(9.9, at + rng.uniform(0.5, 4))) for _ in labels]
    during = sum(any(one[0] < other[1] and other[0] < one[1] for other in times if other is not one) for one in times)
    return [("sound", label, *time, "", "") for label, time in zip(labels, times, strict=True)], len(labels), during


def captioned(out, events, **told):
    one = row(out, sorted(events, key=lambda one: one[2]), **told)
    for stage in (SegmentCaptions(), Merge(annotations=("captions",))):
        (kept,) = stage.run([one], context(out))
        one |= kept.fields
    return one


def test_scores_are_those_of_the_truth_and_the_busiest_segment_is_mined(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "FLAWED", 2**40)
    rng = random.Random(0)
    for number in range(4):
        scenes = [scene(rng, at) for at in (0.0, 10.0, 20.0)]
        one = captioned(tmp_path, [event for some, _, _ in scenes for event in some], seconds=30.0, name=str(number))
        (kept,) = Informative().run([one], context(tmp_path))
        scores = kept.fields["scores"]
        assert [(score["events"], score["overlapping"]) for score in scores] == [told[1:] for told in scenes]
        assert [score["segment"] for score in scores] == [segment["id"] for segment in one["segments"]]
        assert all(score["mix"] == ["sound"] and score["annotation"] for score in scores)
        (mined,) = Mine(most=10.0, hourly=1.0).run([one | kept.fields], context(tmp_path))
        (clip,) = mined.fields["clips"]
        busy = [min(10, 2 * events + during) for _, events, during in scenes]
        assert clip["start"] == 10.0 * busy.index(max(busy))


def captions(count, seconds=10.0):
    """A row with so many captions, the second of which has four seconds of speech."""
    grid = [{"id": f"s{at}", "start": seconds * at, "end": seconds * (at + 1)} for at in range(count)]
    merged = [{"segment": one["id"], "text": f"Bell {one['id']}.", "events": []} for one in grid]
    spans = [{"kind": "speech", "start": 11.0, "end": 15.0}]
    told = {"source_id": "source", "seconds": seconds * count, "spans": spans}
    return {"id": "row", "segments": grid, "merged": merged, **told}


def part(number, events=2, overlapping=0, score=4, mix=("sound",)):
    return {"part": number, "events": events, "overlapping": overlapping, "mix": list(mix), "score": score}


def spoilt(requests):
    """Of ten: the third is missing, the fourth twice, the fifth and sixth out of range, the seventh impossible."""
    given = [part(1, 3, 3, 10), part(2, mix=("sound", "speech")), part(4), part(4), part(5, score=10.5)]
    given += [part(6, score=-1), part(7, 1, 2), part(8, -1, -1), part(9, 0, 0, 0, ()), part(10), part(11), part(0)]
    return [{"parts": given}] * len(requests)


def test_what_no_score_can_be_is_left_out_and_counted(tmp_path):
    (kept,) = Informative().run([captions(10)], context(tmp_path, call=f"{__name__}:spoilt"))
    scores = kept.fields["scores"]
    assert [one["segment"] for one in scores] == ["s0", "s1", "s8", "s9"]
    assert scores[1]["mix"] == ["speech", "sound"]
    assert kept.tally == {
        "scores": 4,
        "scores lost: given twice": 1,
        "scores lost: missing": 1,
        "scores lost: more overlapping events than events": 2,
        "scores lost: of a part that is not there": 2,
        "scores lost: out of range": 2,
    }


def tens(requests):
    """All parts that a request has; what is no score at all where it has four."""
    counts = [request.messages[0]["content"][0]["text"].count(": Bell") for request in requests]
    return [{"parts": [part(at + 1) for at in range(count)]} if count != 4 else {"parts": []} for count in counts]


def test_ten_are_asked_about_together(tmp_path):
    told, asked = [], context(tmp_path, call=f"{__name__}:tens")
    ask = asked.annotators["writer"]
    asked.annotators = {"writer": lambda requests: told.extend(requests) or ask(requests)}
    (kept,) = Informative().run([captions(24)], asked)
    assert [one.messages[0]["content"].count(": Bell") for one in told[:3]] == [10, 10, 4]
    assert "\n2. 10.0 to 20.0 s, speech 4.0 s, music 0.0 s: Bell s1.\n" in told[0].messages[0]["content"]
    assert len({one.subject for one in told}) == 3
    assert kept.tally["scores"] == 20
    assert kept.tally["scores lost: not as asked"] == 4


def busy(requests):
    return [OSError("busy")] * len(requests)


def useless(requests):
    return ["no"] * len(requests)


def test_a_recording_without_scores(tmp_path):
    asked = context(tmp_path, call=f"{__name__}:busy")
    asked.annotators["writer"].waits = ()
    nothing = captions(2) | {"merged": []}
    found = Informative().run([captions(2), nothing], asked)
    assert isinstance(found[0], Failed)
    assert found[0].retryable
    assert found[1].fields == {"scores": []}  # nobody was asked
    (kept,) = Informative().run([captions(2)], context(tmp_path / "b", call=f"{__name__}:useless"))
    assert (kept.fields, kept.tally) == ({"scores": []}, {"scores": 0, "scores lost: no JSON": 2})
    with pytest.raises(ValueError, match="together"):
        Informative(together=0)
