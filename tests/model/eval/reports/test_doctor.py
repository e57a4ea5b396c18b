"""What is found of the files of a benchmark before a model is asked."""

import json
import math
from dataclasses import replace

import pytest
import soundfile

from afn_model.eval.loaders import COPY
from afn_model.eval.reports import doctor as module
from afn_model.eval.reports.doctor import examine, other_files, text
from afn_model.eval.table import BenchmarkRow
from afn_model.files import fingerprint

ROW = BenchmarkRow(
    name="some",
    title="Some",
    loader="mmau",
    prompt="choose",
    metric="accuracy %",
    scorers=({"name": "official", "rule": "string-match"},),
    files={"questions": ["test.json", "**/test.json"]},
    items=3,
    where="test.json of its authors",
)


def question(id, answer: str | None = "dog", audio="a.wav"):
    found = {"id": id, "question": "Which?", "choices": ["cat", "dog"], "audio_id": f"./{audio}", "task": "sound"}
    return found if answer is None else found | {"answer": answer}


@pytest.fixture
def data(tmp_path):
    """A data folder with one benchmark: a recording of two seconds, three questions."""
    folder = tmp_path / "some"
    folder.mkdir()
    soundfile.write(folder / "a.wav", [0.1] * 32_000, 16_000)
    write(folder, [question(id) for id in "abc"])
    return tmp_path


def write(folder, rows):
    (folder / "test.json").write_text(json.dumps(rows))


def test_files_that_are_as_published_are_ready(data):
    (found,) = examine([ROW], data)
    assert found.complete
    assert found.sentences() == []
    assert found.files == {"questions": ["test.json"]}
    assert (found.items, found.clips, found.longest) == (3, 1, 2.0)
    assert found.hours == 2 / 3600, "a recording that several questions are about counts once"
    assert "\nsome       ready " in text([found])
    assert text([found]).endswith("\n1 ready; 0.0 hours of audio")


def test_missing_files_are_named_and_where_they_are(data):
    rows = [replace(ROW, name="elsewhere", private=True)]
    (found,) = examine(rows, data)
    assert not found.complete
    assert found.missing == {"questions": "test.json"}
    assert found.sentences() == [
        f"Missing in {data / 'elsewhere'}: test.json.",
        "To get it: test.json of its authors.",
    ]
    assert "elsewhere  missing" in text([found])
    (data / "some" / "test.json").write_text("{")
    (found,) = examine([ROW], data)
    assert "no JSON" in found.problem
    assert found.sentences()[0].startswith("It cannot be read")
    assert "some       faulty" in text([found])


def test_what_is_odd_about_items_is_counted_and_exemplified(data):
    folder = data / "some"
    (folder / "bad.wav").write_bytes(b"no recording" * 100)
    rows = [
        question("a"),
        question("a", answer="a dog"),
        question("b", answer=None, audio="gone.wav"),
        question("c", audio="bad.wav"),
    ]
    write(folder, rows)
    (folder / COPY).write_text("")
    (found,) = examine([replace(ROW, sha256={"test.json": "0" * 64}, hidden=True)], data)
    assert not found.complete
    assert found.copy
    assert found.other_files == ["test.json"]
    assert found.hidden == 1
    assert found.repeated == ["a"]
    assert found.not_a_choice == ["a#2"]
    assert found.absent == [str(folder / "gone.wav")]
    assert list(found.unreadable) == [str(folder / "bad.wav")]
    told = " ".join(found.sentences())
    for said in (
        "synthetic",
        "4 items, the official split has 3",
        "SHA-256",
        "of 1 items are hidden",
        "options: 1 (a#2)",
    ):
        assert said in told
    read = json.loads(json.dumps(found.as_json()))
    assert (read["complete"], read["items"], read["official"]) == (False, 4, 3)
    assert other_files(replace(ROW, sha256={"test.json": fingerprint(folder / "test.json")}), data) == []


def test_recordings_longer_than_the_model_takes_are_named(data, monkeypatch):
    monkeypatch.setattr(module, "measured_seconds", lambda audio: 1801.0)
    (found,) = examine([ROW], data)
    assert not found.complete
    assert found.too_long == [str(data / "some" / "a.wav")]
    assert found.longest == 1801
    (quick,) = examine([ROW], data, durations=False)
    assert quick.complete
    assert math.isclose(quick.longest, 0)


def test_only_headers_are_read_and_each_recording_once(data, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "measured_seconds", lambda audio: asked.append(audio.source) or 1.0)
    names = []
    examine([ROW, replace(ROW, name="some-other")], data, on_row=names.append)
    assert asked == [str(data / "some" / "a.wav")]
    assert names == ["some", "some-other"]
