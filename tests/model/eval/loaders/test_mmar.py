import pytest

from afn_model.eval.loaders import load
from tests.model.eval.loaders.copied import copied, lines, loaded, write


def test_choices_and_answers(tmp_path):
    items = loaded("mmar", tmp_path)
    assert [len(item.choices) for item in items] == [4, 2, 4, 4, 4]  # an empty one is none
    assert all(item.answer in item.choices for item in items)
    assert items[3].answer == items[3].answer.strip()
    assert [item.groups.get("language") for item in items] == [None, "en", "zh|en", None, "en"]
    assert items[4].groups["modality"] == "mix-sound-speech"
    assert items[0].extra["rubric"][0]["choices"] == [0, 1]
    assert items[2].extra["timestamp"] == "00:00:02,00:00:03"


def test_a_number_is_a_text_and_an_absent_recording_keeps_its_path(tmp_path):
    row, folder = copied("mmar", tmp_path)
    path = folder / "MMAR-meta.jsonl"
    rows = lines(path)
    rows[0] |= {"choices": ["2", "4", "5", "3"], "answer": "3"}
    write(path, rows)
    (folder / rows[0]["audio_path"]).unlink()
    item = load(row, tmp_path)[0]
    assert item.answer == "3"
    assert item.clips[0].path == str(folder / "audio" / f"{item.id}.wav")


def test_a_changed_column_is_named(tmp_path):
    row, folder = copied("mmar", tmp_path)
    path = folder / "MMAR-meta.jsonl"
    write(path, [{"path": one.pop("audio_path"), **one} for one in lines(path)])
    with pytest.raises(ValueError, match=r"MMAR-meta.jsonl, question 1: no field 'audio_path'; there are path, id"):
        load(row, tmp_path)
    path.write_text('\n{"id"\n')
    with pytest.raises(ValueError, match=r"MMAR-meta.jsonl, line 2: no JSON"):
        load(row, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"mmar: no MMAR-meta.jsonl or .* in it"):
        load(row, tmp_path)
