"""Transcripts of the stand-ins' recordings, heard where that can be."""

import json

import pytest

from afn_model.curate.requests import AnnotationRequest
from afn_model.curate.stand_ins.heard_words import is_clear, transcribe
from afn_model.curate.stand_ins.recordings import RECORDINGS, write_recordings

WORD = {"kind": "word", "label": "a", "language": "en", "start": 0.0, "end": 1.0}


def test_english_alone_is_heard():
    after = {**WORD, "start": 1.0, "end": 2.0}
    assert is_clear([WORD, after])
    assert not is_clear([])
    assert not is_clear([WORD, {**after, "start": 0.5}])
    assert not is_clear([WORD, {**after, "language": "de"}])
    assert not is_clear([WORD, {**after, "kind": "sound"}])


def test_what_is_heard_has_its_times_in_what_was_sent(tmp_path):
    pytest.importorskip("pocketsphinx")
    made = write_recordings(tmp_path, plain=6, planted={}, long=0)
    clear, other = (
        next(one for one in made if is_clear(one["events"]) is kind and one["events"]) for kind in (True, False)
    )
    asked = []
    for one in (clear, other):
        path = tmp_path / RECORDINGS / f"{one['source_id']}.flac"
        path.write_bytes((tmp_path / RECORDINGS / one["url"]).read_bytes())
        part = {"audio": {"path": str(path), "start": 0.2, "end": None}}
        message = {"role": "user", "content": [part]}
        asked.append(AnnotationRequest(one["source_id"], "s", 1, "transcript", "h", (message,), {}, None, ""))
    heard, told = transcribe(asked, str(tmp_path / "truth.jsonl"))
    said = [event["label"] for event in clear["events"]]
    assert [word["word"] for word in heard["words"]] == said
    assert heard["words"][0]["start"] == pytest.approx(clear["events"][0]["start"] - 0.2, abs=0.15)
    assert json.dumps(told["words"])
    assert all(word["start"] >= 0 for word in told["words"])
