"""CompA-R-test."""

import pytest

from tests.model.eval.loaders.written import loaded, put

PAIR = {"instruction": "Why does it ring?", "output": "A shift ends. "}
ROW = {"audio_id": "/data/x/abc_10.wav", "caption": "A bell.", "timestamp_events": "(Bell-0.0-0.6)"}


def test_each_instruction_is_an_item_that_the_judge_can_read_about(tmp_path):
    here = put(tmp_path / "compa-r" / "compa_r_test_audios" / "abc_10.wav")
    rows = [ROW | {"instruction_output": [PAIR, PAIR | {"output": ""}]}, ROW | {"instruction_output": [PAIR]}]
    items = loaded("compa-r", tmp_path, instructions=rows)
    assert [(item.id, item.answer) for item in items] == [
        ("abc_10/1", "A shift ends."),
        ("abc_10/2", None),
        ("abc_10/1#2", "A shift ends."),
    ]
    assert items[0].question == "Why does it ring?"
    assert items[0].clips[0].path == here
    assert items[0].extra == {"caption": "A bell.", "events": "(Bell-0.0-0.6)"}


def test_rows_of_another_form_are_named(tmp_path):
    with pytest.raises(ValueError, match="recording 1: no field 'instruction_output'; there are audio_id, caption"):
        loaded("compa-r", tmp_path, instructions=[ROW])
    with pytest.raises(ValueError, match="recording 1, instruction 1: an object is expected, got 'Why'"):
        loaded("compa-r", tmp_path, instructions=[ROW | {"instruction_output": ["Why"]}])
    with pytest.raises(ValueError, match="a list of recordings is expected"):
        loaded("compa-r", tmp_path, instructions=ROW)
