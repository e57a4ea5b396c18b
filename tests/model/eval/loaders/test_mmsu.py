import json

import pytest

from afn_model.eval.copies.choices import write_parquet
from afn_model.eval.loaders import load
from tests.model.eval.loaders.copied import copied, lines, loaded, write


def test_null_choices_numbers_and_the_word_none(tmp_path):
    items = loaded("mmsu", tmp_path)
    assert [len(item.choices) for item in items] == [4, 2, 4, 4, 4]
    null = lines(tmp_path / "mmsu" / "question" / "mmsu.jsonl")[1]
    assert (null["choice_a"], null["choice_c"]) == (None, None)  # at any places, as in 453 questions of the benchmark
    assert items[1].choices == (null["choice_b"], null["choice_d"])
    assert (items[2].choices, items[2].answer) == (("1", "2", "3", "4"), "2")  # a number, no place
    assert "None" in items[3].choices
    assert all(item.answer in item.choices for item in items)
    assert items[0].groups == {"task": "copy", "category": "Reasoning", "sub-category": "Linguistics"}
    assert all(item.clips[0].path == str(tmp_path / "mmsu" / "audio" / f"{item.id}.wav") for item in items)


def test_lists_and_tables_of_the_same_rows(tmp_path):
    row, folder = copied("mmsu", tmp_path)
    path = folder / "question" / "mmsu.jsonl"
    rows, items = lines(path), load(row, tmp_path)
    path.write_text(json.dumps(rows))  # mmsu_inference.py reads a list
    assert load(row, tmp_path) == items
    path.unlink()
    texts = [{name: str(value) if isinstance(value, int) else value for name, value in one.items()} for one in rows]
    write_parquet(
        folder / "data" / "train-00000-of-00001.parquet", [{"audio": {"bytes": b"", "path": ""}} | one for one in texts]
    )
    found = load(row, tmp_path)
    assert [(item.id, item.choices, item.answer) for item in found] == [(i.id, i.choices, i.answer) for i in items]
    assert found[1].clips[0].path.endswith("train-00000-of-00001.parquet#0.1:audio")


def test_the_hubs_folder_inside_of_the_benchmarks(tmp_path):
    row, folder = copied("mmsu", tmp_path)
    (folder / "MMSU").mkdir()
    for name in ("question", "audio"):
        (folder / name).rename(folder / "MMSU" / name)
    assert load(row, tmp_path)[0].clips[0].path == str(folder / "MMSU" / "audio" / "copy_0.wav")


def test_a_changed_column_is_named(tmp_path):
    row, folder = copied("mmsu", tmp_path)
    path = folder / "question" / "mmsu.jsonl"
    write(path, [{"choice_1": one.pop("choice_b"), **one} for one in lines(path)])
    with pytest.raises(ValueError, match=r"mmsu.jsonl, question 1: no field 'choice_b'; there are choice_1"):
        load(row, tmp_path)
