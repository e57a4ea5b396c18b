import pyarrow.parquet as parquet
import pytest

from afn_model.eval.copies.choices import write_parquet
from afn_model.eval.loaders import load
from tests.model.eval.loaders.copied import copied, loaded


def test_kinds_of_questions(tmp_path):
    closed, several, free, plain, counted = loaded("mmau-pro", tmp_path)
    assert closed.answer in closed.choices
    assert closed.groups == {"category": "sound", "length": "short", "recordings": "one"}
    assert "kwargs" not in closed.extra
    assert [clip.path[-12:] for clip in several.clips] == ["copy_1_0.wav", "copy_1_1.wav"]
    assert len(several.choices) == 11
    assert several.groups["recordings"] == "several"
    assert free.choices == ()
    assert free.answer is not None
    assert (plain.choices, plain.answer) == ((), None)
    assert plain.extra["task_identifier"] == "All Lowercase"
    assert counted.extra["kwargs"] == {"N": 5}  # other fields of the struct are null
    assert counted.extra["category"] == "instruction following"


def test_arguments_as_text_and_what_they_may_not_be(tmp_path):
    row, folder = copied("mmau-pro", tmp_path)
    rows = parquet.read_table(folder / "test.parquet").to_pylist()
    forms = ['{"N": 3}', "{'N': 4}", "", None, "7"]
    write_parquet(folder / "test.parquet", [one | {"kwargs": form} for one, form in zip(rows, forms, strict=True)][:4])
    assert [item.extra.get("kwargs") for item in load(row, tmp_path)] == [{"N": 3}, {"N": 4}, None, None]
    write_parquet(folder / "test.parquet", [rows[0] | {"kwargs": forms[4]}])
    with pytest.raises(ValueError, match="row 1: field 'kwargs' is not what the benchmark publishes: 7"):
        load(row, tmp_path)
    write_parquet(folder / "test.parquet", [{"audio": one.pop("audio_path")} | one for one in rows])
    with pytest.raises(ValueError, match="row 1: no field 'audio_path'"):
        load(row, tmp_path)


def test_recordings_that_are_packed_still(tmp_path):
    row, folder = copied("mmau-pro", tmp_path)
    (folder / "data.zip").write_bytes(b"")
    load(row, tmp_path)
    (folder / "data").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"data\.zip: the recordings are in it still; unpack it"):
        load(row, tmp_path)
    (folder / "data.zip").unlink()
    assert load(row, tmp_path)[0].clips[0].path == str(folder / "data" / "copy_0_0.wav")
