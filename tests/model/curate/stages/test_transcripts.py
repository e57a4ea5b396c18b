"""Transcripts: the whole recording is asked about, in parts where it is long, and each word is in one segment."""

import pytest

from afn_model.curate.annotators import annotator_of
from afn_model.curate.stage import Context, Failed
from afn_model.curate.stages.transcripts import Transcripts, pieces
from afn_model.curate.stand_ins.server import RuleServer, answers_from
from tests.model.curate.stages.heard import context, row


def test_words_are_cut_into_segments(tmp_path):
    one = row(tmp_path)
    (kept,) = Transcripts().run([one], context(tmp_path))
    transcript, parts = kept.fields["transcript"], kept.fields["transcripts"]
    assert (transcript["text"], transcript["language"]) == ("seven yes no", "en")
    assert [(part["segment"], part["text"]) for part in parts] == [
        (one["segments"][0]["id"], "seven"),
        (one["segments"][1]["id"], "yes no"),
    ]
    assert parts[1]["words"][0] == {"word": "yes", "start": 9.7, "end": 10.5}
    assert [word for part in parts for word in part["words"]] == transcript["words"]
    assert kept.tally == {"words": 3}
    assert len(transcript["annotations"]) == 1


def test_in_parts_and_over_the_wire_it_is_the_same(tmp_path):
    one = row(tmp_path)
    one["spans"] = [*one["spans"], {"kind": "silence", "start": 7.8, "end": 8.4}]
    (want,) = Transcripts().run([one], context(tmp_path))
    with RuleServer(answers_from(str(tmp_path / "truth.jsonl"), tmp_path / "recordings")) as server:
        told = {"url": server.url, "model": "rules", "api": "transcriptions"}
        ask = annotator_of("transcriber", told, tmp_path, "0")
        (found,) = Transcripts(longest=9.0).run([one], Context(tmp_path, "0", {"transcriber": ask}))
        assert server.answered == 3
    assert len(found.fields["transcript"].pop("annotations")) == 3
    assert {**want.fields["transcript"], "model": ""} == {
        **found.fields["transcript"],
        "model": "",
        "annotations": want.fields["transcript"]["annotations"],
    }
    parts = [found.fields["transcripts"], want.fields["transcripts"]]
    assert [len(part.pop("annotations")) for some in parts for part in some] == [2, 2, 1, 1]
    assert parts[0] == parts[1]
    assert want.tally == found.tally


def test_parts_are_cut_in_silence():
    spans = [{"kind": "silence", "start": start, "end": end} for start, end in ((3.0, 5.0), (8.0, 8.2), (9.0, 9.6))]
    assert pieces(25.0, spans, 10.0) == [(0.0, 9.3), (9.3, 19.3), (19.3, 25.0)]
    assert pieces(10.0, spans, 10.0) == [(0.0, 10.0)]
    assert pieces(10.001, [], 10.0) == [(0.0, 9.001), (9.001, 10.001)]  # no part is too short to be read


def odd(requests):
    words = [("one", 0.5, 1.0), ("two", 24.0, 26.0), ("three", 3.0, 2.0), (" ", 4.0, 5.0), ("four", 5.0, 5.5)]
    listed = [dict(zip(("word", "start", "end"), word, strict=True)) for word in words]
    return [{"text": "one two three four", "words": listed}] * len(requests)


def plain(requests):
    return [{"text": "one two", "words": None}] * len(requests)


def wrong(requests):
    return [{"words": []}] * len(requests)


def test_words_outside_and_without_times(tmp_path):
    one = row(tmp_path)
    (kept,) = Transcripts().run([one], context(tmp_path, call=f"{__name__}:odd"))
    assert [word["word"] for word in kept.fields["transcript"]["words"]] == ["one", "four"]
    assert kept.tally == {"words": 2, "words outside of the recording": 3}
    (kept,) = Transcripts().run([one], context(tmp_path / "b", call=f"{__name__}:plain"))
    assert kept.fields["transcripts"] == []
    assert kept.fields["transcript"]["text"] == "one two"
    assert kept.tally == {"parts without word times": 1}
    (failed,) = Transcripts().run([one], context(tmp_path / "c", call=f"{__name__}:wrong"))
    assert failed == Failed("1 of 1 parts have no transcript: not as asked: reply lacks text")


def test_where_nobody_speaks_nobody_is_asked(tmp_path):
    (kept,) = Transcripts().run([row(tmp_path, events=())], context(tmp_path, ("captioner", "transcriber")))
    assert kept.fields["transcripts"] == []
    assert kept.tally == {"recordings without speech": 1}
    with pytest.raises(ValueError, match="longest"):
        Transcripts(longest=0.5)
