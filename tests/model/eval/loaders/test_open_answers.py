"""Open answers."""

import pytest

from afn_model.eval.prompts import content
from tests.model.eval.loaders.written import loaded, put


def _turns(*said):
    return [{"from": who, "value": text} for who, text in zip(("human", "gpt", "human"), said, strict=False)]


def _record(sound, *said, **rest):
    return {"id": "a", "sound": sound, "conversations": _turns(*said), **rest}


def test_records_of_audio_flamingo_become_questions_and_repeated_ids_differ(tmp_path):
    here = put(tmp_path / "songcaps" / "audio" / "one.wav")
    other = put(tmp_path / "songcaps" / "two.wav")
    records = [
        _record("/x/one.wav", "<sound>\nWhat is it?", " A song. ", duration="12.5"),
        _record(["one.wav", "two.wav"], "Is <sound-2> like <sound-1>?", "No."),
        _record("one.wav", "What is it?"),
        {"id": 4, "conversations": _turns("Who?", "You.")},
    ]
    items = loaded("songcaps", tmp_path, records=records)
    assert [(item.id, item.question, item.answer) for item in items] == [
        ("a", "What is it?", "A song."),
        ("a#2", "Is <sound-2> like <sound-1>?", "No."),
        ("a#3", "What is it?", None),
        ("4", "Who?", "You."),
    ]
    assert [[clip.path for clip in item.clips] for item in items] == [[here], [here, other], [here], []]
    parts = content(items[1], items[1].question)
    assert [part.get("path", part.get("text")) for part in parts] == ["Is ", other, " like ", here, "?"]
    assert items[0].extra == {"duration": "12.5"}
    assert items[3].extra == {}


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([_record("a.wav", "Who?", "You.", "And?")], "record 1: one question and one answer are expected, got"),
        ([{"id": "a", "conversations": [{"from": "system", "value": "Be brief."}]}], "record 1: one question and one"),
        ([{"id": "a", "conversations": []}], "record 1: no question in it"),
        ([{"id": "a", "messages": []}], "no field 'conversations'; there are id, messages"),
        ([_record({"path": "a.wav"}, "Who?", "You.")], "record 1: field 'sound' is not what"),
        ({"a": 1}, "a list of records is expected"),
    ],
)
def test_records_that_are_no_question_are_named(tmp_path, records, told):
    with pytest.raises(ValueError, match=told):
        loaded("longaudiobench-sounds", tmp_path, records=records)


def test_both_parts_of_longaudiobench_have_files_of_their_own(tmp_path):
    (item,) = loaded("longaudiobench-speech", tmp_path, records=[_record("a.wav", "Who?", "You.")])
    assert item.answer == "You."
    (tmp_path / "longaudiobench-sounds").mkdir()
    with pytest.raises(ValueError, match=r"no longaudiobench\.json in it"):
        loaded("longaudiobench-sounds", tmp_path)


def test_musicinstruct_takes_the_questions_about_audiosets_evaluation_part(tmp_path):
    here = put(tmp_path / "musicinstruct-short" / "MusicCaps_audio" / "[abcdefghi-k]-[30-40].wav")
    row = {"ytid": "abcdefghi-k", "question": "Which mood?", "answer": "Calm.", "is_audioset_eval": True}
    items = loaded("musicinstruct-short", tmp_path, questions={"QA": [row, row | {"is_audioset_eval": False}, row]})
    assert [item.id for item in items] == ["abcdefghi-k", "abcdefghi-k#2"]
    assert (items[0].question, items[0].answer, items[0].clips[0].path) == ("Which mood?", "Calm.", here)
    with pytest.raises(ValueError, match="no field 'QA'; there are data"):
        loaded("musicinstruct-short", tmp_path, questions={"data": []})
