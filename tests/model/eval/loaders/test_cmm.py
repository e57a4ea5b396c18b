import json

import pytest

from afn_model.eval.loaders import load
from tests.model.eval.loaders.copied import changed, copied, write


def test_what_was_heard_is_asked_and_nothing_else(tmp_path):
    row, folder = copied("cmm", tmp_path)
    path = folder / "all_data_final_reorg.json"
    rows, items = json.loads(path.read_text()), load(row, tmp_path)
    assert len(rows) == 8
    assert [item.id for item in items] == ["1", "2", "3", "4", "5", "6"]
    assert [item.answer for item in items] == ["yes", "no"] * 3
    assert all("Did you hear" in item.question for item in items)
    assert items[0].groups["sub-category"] == "audio-language"
    write(path, rows)  # evaluation/final_output.json has a row in a line
    assert load(row, tmp_path) == items


def test_an_answer_is_yes_or_no(tmp_path):
    row, folder = copied("cmm", tmp_path)
    path = folder / "all_data_final_reorg.json"
    changed(path, lambda rows: rows[3].update(answer="No."))
    assert load(row, tmp_path)[3].answer == "no"
    changed(path, lambda rows: rows[3].update(answer="maybe"))
    with pytest.raises(ValueError, match="row 4: field 'answer' is yes or no, got 'maybe'"):
        load(row, tmp_path)
    changed(path, lambda rows: [{name: rows[0][name] for name in ("question", "answer")}])
    with pytest.raises(ValueError, match="row 1: no field 'audio_path'; there are question, answer"):
        load(row, tmp_path)
