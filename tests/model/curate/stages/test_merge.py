"""Merging: what reaches the writer, what is taken out of what it writes, and what is counted."""

import pytest

from afn_model.curate.stage import Failed
from afn_model.curate.stages.captions import SegmentCaptions
from afn_model.curate.stages.diarise import Diarise
from afn_model.curate.stages.merge import Merge
from afn_model.curate.stages.transcripts import Transcripts
from afn_model.curate.stages.voices import Voices
from tests.model.curate.stages.heard import context, row


def annotated(out):
    """A row with all that is merged."""
    one, asked = row(out), context(out)
    for stage in (SegmentCaptions(), Transcripts(), Voices(least=0.1), Diarise()):
        (kept,) = stage.run([one], asked)
        one |= kept.fields
    return one


def test_four_annotations_become_one_caption_and_those_one_of_the_whole(tmp_path):
    one = annotated(tmp_path)
    (kept,) = Merge().run([one], context(tmp_path))
    merged, caption = kept.fields["merged"], kept.fields["caption"]
    assert [entry["text"] for entry in merged] == [
        'A man speaks, then a bell is heard. A man speaks fast and calmly. The words are "seven".',
        "A woman speaks, then a man speaks. A woman speaks fast and calmly. A man speaks fast and calmly."
        ' The words are "yes no".',
        "A siren is heard.",
    ]
    assert caption["text"] == " ".join(entry["text"] for entry in merged)
    used = {entry["annotation"] for name in ("captions", "voices") for entry in one[name]}
    used |= {one["diarisation"]["annotation"], *one["transcript"]["annotations"]}
    assert used == {name for entry in merged for name in entry["annotations"]}
    assert "annotation" not in merged[2]  # nothing to merge: nobody was asked
    assert len(caption["annotations"]) == 3
    assert kept.tally == {"captions of recordings": 1, "captions of segments": 3}


def test_what_the_writer_reads(tmp_path):
    one, told = annotated(tmp_path), []
    asked = context(tmp_path / "b", call=f"{__name__}:spoilt")
    ask = asked.annotators["writer"]
    asked.annotators = {"writer": lambda requests: told.extend(requests) or ask(requests)}
    one["seen"] = [{"segment": one["segments"][1]["id"], "text": "Two people in red coats.", "annotation": "s"}]
    stage = Merge(annotations=("captions", "transcripts", "voices", "speakers", "seen"))
    stage.run([one], asked)
    assert len(told) == 3
    assert told[0].subject == one["segments"][0]["id"]
    lines = told[1].messages[0]["content"].splitlines()
    assert "speech: yes no" in lines
    assert "seen: Two people in red coats." in lines
    assert "speakers: speaker 2 0.0 to 0.5 s; speaker 1 2.0 to 2.4 s" in lines
    assert told[2].subject == one["source_id"]
    assert "20.0 to 25.0 s: A siren is heard." in told[2].messages[0]["content"]
    assert told[0].messages[0]["content"].rstrip().endswith('{"caption": "...", "events": ["...", "..."]}')


def spoilt(requests):
    """Each kind of sentence that does not stand, and one that does."""
    said = [
        ("A man speaks. A dog barks far away.", ["a man speaks", "a dog barks"]),
        ("A woman in a red dress speaks. A man answers at 95 seconds.", ["a woman speaks"]),
        ("A man and a woman speak. At 40 s a siren is heard.", ["a siren is heard"]),
    ]
    places = [number for one in requests for number, mark in enumerate(("seven", "yes", "parts of")) if _has(one, mark)]
    return [{"caption": said[place][0], "events": said[place][1]} for place in places[: len(requests)]]


def _has(request, mark):
    text = request.messages[0]["content"][0]["text"]
    if "parts of one recording" in text:
        return mark == "parts of"
    return f"speech: {mark}" in text


def test_what_does_not_stand_is_taken_out_and_counted(tmp_path):
    one = annotated(tmp_path)
    (kept,) = Merge().run([one], context(tmp_path / "b", call=f"{__name__}:spoilt"))
    assert [entry["text"] for entry in kept.fields["merged"]] == ["A man speaks.", "A siren is heard."]
    assert kept.fields["merged"][0]["events"] == ["a man speaks"]
    assert (kept.fields["caption"]["text"], kept.fields["caption"]["events"]) == ("A man and a woman speak.", [])
    assert kept.tally["segments: events that no annotation has"] == 1
    assert kept.tally["segments: sentences that no annotation has"] == 1
    assert kept.tally["segments: sentences of what is only seen"] == 1
    assert kept.tally["segments: sentences with times outside of the recording"] == 1
    assert kept.tally["captions of segments lost: nothing stands"] == 1


def nothing(requests):
    return [{"caption": "Dogs bark.", "events": ["dogs"]}] * len(requests)


def test_a_recording_without_any_caption(tmp_path):
    one = annotated(tmp_path)
    one["captions"] = one["captions"][:2]  # the last segment has no annotation
    (kept,) = Merge().run([one], context(tmp_path / "b", call=f"{__name__}:nothing"))
    assert kept.fields == {"merged": [], "caption": None}
    assert kept.tally["captions of segments lost: nothing stands"] == 2
    one["captions"] += [{"segment": one["segments"][2]["id"], "text": "Dogs bark at 90 s.", "annotation": "a"}]
    (kept,) = Merge().run([one], context(tmp_path / "b", call=f"{__name__}:nothing"))
    assert kept.fields["caption"] is None  # what nobody merged is looked at too
    with pytest.raises(ValueError, match="annotations are some of"):
        Merge(annotations=("caption",))


def busy(requests):
    return [OSError("busy")] * len(requests)


def test_a_busy_writer_is_waited_for(tmp_path):
    asked = context(tmp_path / "b", call=f"{__name__}:busy")
    asked.annotators["writer"].waits = ()
    (failed,) = Merge().run([annotated(tmp_path)], asked)
    assert isinstance(failed, Failed)
    assert failed.retryable
