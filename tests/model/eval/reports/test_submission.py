"""Files to hand in: the official questions in their order, with an answer in each under the official key."""

import json
from dataclasses import replace

import pytest

from afn_model.eval.items import AnsweredItem, Item
from afn_model.eval.reports.submission import write_submission
from tests.model.eval.reports.test_doctor import ROW as MMAU

QUESTIONS = [{"id": "x", "question": "Which?", "task": "sound"}, {"id": "x", "question": "What?"}, {"id": 7}]
SAID = [
    AnsweredItem(Item("x"), "<think>a dog or a cat</think><answer>dog</answer>"),
    AnsweredItem(Item("x#2"), " B \n"),
]
SAID += [AnsweredItem(Item("7"), None, "no such file")]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("loader", "file", "key"),
    [("mmau", "test.json", "model_output"), ("mmar", "q.jsonl", "answer_prediction"), ("mmsu", "q.jsonl", "response")],
)
def test_answers_stand_in_the_rows_of_the_official_file(loader, file, key, tmp_path):
    (tmp_path / "data/some").mkdir(parents=True)
    text = json.dumps(QUESTIONS) if file.endswith(".json") else "\n".join(json.dumps(row) for row in QUESTIONS)
    (tmp_path / "data/some" / file).write_text(text)
    row = replace(MMAU, loader=loader, files={"questions": file})
    written = write_submission(row, SAID, tmp_path / "data", tmp_path)
    assert written is not None
    path, empty = written
    assert empty == 1
    found = json.loads(path.read_text()) if path.suffix == ".json" else lines(path)
    assert [one[key] for one in found] == ["dog", "B", ""]
    assert [{name: one[name] for name in given} for one, given in zip(found, QUESTIONS, strict=True)] == QUESTIONS
    assert found[0].get("thinking_prediction") == ("a dog or a cat" if loader == "mmar" else None)
    assert ("model_prediction" in found[0]) == (loader == "mmau")


def test_questions_in_parquet_files_are_handed_in_too(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data/some").mkdir(parents=True)
    row = replace(MMAU, files={"questions": "*.parquet"})
    pro = pyarrow.table({"id": ["x", "x", "7"], "audio_path": [["a.wav"], [], ["b.wav"]]})
    parquet.write_table(pro, tmp_path / "data/some/test.parquet")
    path, _ = write_submission(replace(row, loader="mmau-pro"), SAID, tmp_path / "data", tmp_path) or (None, 0)
    assert parquet.read_table(path).to_pydict() == pro.to_pydict() | {"model_output": ["dog", "B", ""]}
    hub = pyarrow.table(
        {"context": [{"bytes": b"", "path": ""}] * 3, "instruction": ["Which?"] * 3, "other_attributes": ["{}"] * 3}
    )
    parquet.write_table(hub, tmp_path / "data/some/test.parquet")
    items = [replace(one, item=replace(one.item, choices=("dog", "cat"), groups={"task": "sound"})) for one in SAID]
    path, _ = write_submission(row, items, tmp_path / "data", tmp_path) or (None, 0)
    assert path is not None
    assert json.loads(path.read_text())[0] == {
        "id": "x",
        "question": "",
        "choices": ["dog", "cat"],
        "task": "sound",
        "model_output": "dog",
        "model_prediction": "dog",
    }


def test_a_part_of_the_questions_is_nothing_to_hand_in(tmp_path):
    (tmp_path / "data/some").mkdir(parents=True)
    (tmp_path / "data/some/test.json").write_text(json.dumps(QUESTIONS))
    with pytest.raises(ValueError, match="3 questions, the run has 2"):
        write_submission(MMAU, SAID[:2], tmp_path / "data", tmp_path)
    with pytest.raises(ValueError, match="this question of the file is y in the run"):
        write_submission(MMAU, [*SAID[:2], AnsweredItem(Item("y"), "dog")], tmp_path / "data", tmp_path)
    assert write_submission(replace(MMAU, loader="nsynth"), SAID, tmp_path / "data", tmp_path) is None
