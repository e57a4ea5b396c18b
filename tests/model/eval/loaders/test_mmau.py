import json
import re

import pytest

from afn_model.audio.recording import Audio
from afn_model.audio.recording import load as load_audio
from afn_model.eval.copies.choices import write_parquet
from afn_model.eval.copies.sounds import Sounds, encoded
from afn_model.eval.loaders import load
from tests.model.eval.loaders.copied import changed, copied, loaded


def test_the_authors_list(tmp_path):
    items = loaded("mmau-mini", tmp_path)
    assert [item.id for item in items] == ["copy-0", "copy-0#2", "copy-1", "copy-2", "copy-3"]
    assert all(len(item.choices) == 4 for item in items)  # those of the third are one string
    assert [item.answer in item.choices for item in items] == [True, True, True, False, True]
    assert items[0].groups["task"] == "sound"


def test_answers_of_the_test_split_are_hidden(tmp_path):
    items = loaded("mmau-test", tmp_path)
    assert len(items) == 5
    assert {item.answer for item in items} == {None}


def test_the_hubs_table_has_letters_before_choices_and_recordings_inside(tmp_path):
    row, folder = copied("mmau-mini", tmp_path)
    (folder / "mmau-test-mini.json").unlink()
    sound = Sounds(1).sound("dog")
    about = {"id": "x", "task": "music", "category": "Reasoning", "sub-category": "Rhythm", "difficulty": "hard"}
    plain = {"choices": ["(A) cat", "dog"], "answer": "dog"}
    rows = [
        {"choices": ["(A) Man", "(B) Woman", "(C) (B)"], "answer": "(B) Woman"},
        {"choices": ["(A) Man", "(B) Man"], "answer": "(B) Man"},
        plain,
    ]
    shown = [
        {
            "context": {"bytes": encoded(sound), "path": None},
            "instruction": "Who?",
            "other_attributes": json.dumps(about | {"id": str(n)}),
            **one,
        }
        for n, one in enumerate(rows)
    ]
    write_parquet(folder / "test_mini.parquet", shown)
    first, second, third = load(row, tmp_path)
    assert (first.question, first.choices, first.answer) == ("Who?", ("Man", "Woman", "(B)"), "Woman")
    assert (second.choices, second.answer) == (("Man", "Man"), "Man")
    assert (third.choices, third.answer) == (("(A) cat", "dog"), "dog")  # not all have one: part of the text
    assert first.groups == {name: value for name, value in about.items() if name != "id"}
    assert len(load_audio(Audio(first.clips[0].path))) == len(sound)


def test_what_is_wrong_is_named(tmp_path):
    row, folder = copied("mmau-mini", tmp_path)
    path = folder / "mmau-test-mini.json"
    changed(path, lambda rows: rows[1].update(options=rows[1].pop("choices")))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, question 2: no field 'choices'; there are id, aud"):
        load(row, tmp_path)
    changed(path, lambda rows: rows[1].update(choices=7))
    with pytest.raises(ValueError, match="question 2: field 'choices' is not what the benchmark publishes: 7"):
        load(row, tmp_path)
    changed(path, lambda rows: [rows])
    with pytest.raises(ValueError, match="row 1: an object is expected"):
        load(row, tmp_path)
