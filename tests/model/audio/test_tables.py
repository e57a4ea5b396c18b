"""Recordings in tables: a cell's bytes come back, of one column of its row group, and damage is said in one line."""

import os
import sys

import numpy as np
import pytest
import torch

from afn_model import storage
from afn_model.audio import tables
from afn_model.audio.recording import Audio, load, measured_seconds
from afn_model.audio.tables import cell_path, find_cell, is_cell, open_table, read_cell, split_cell
from afn_model.ranges import BLOCK
from tests.corpora import clip, parquet

pa = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet and Arrow files")
CLIPS = [os.urandom(1000 * (number + 1)) for number in range(5)]
ROWS = [{"text": f"Row {number}.", "audio": {"bytes": data, "path": None}} for number, data in enumerate(CLIPS)]
SCHEMA = pa.schema([("text", pa.string()), ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])


def arrow(path, rows, kind):
    """As ``datasets`` saves them, a stream; or a file, with a footer."""
    with {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[kind](str(path), SCHEMA) as out:
        for first in range(0, len(rows), 2):
            out.write_batch(pa.RecordBatch.from_pylist(rows[first : first + 2], schema=SCHEMA))
    return path


@pytest.fixture
def written(tmp_path):
    """Three tables of the same rows."""
    return [
        parquet(tmp_path / "a.parquet", ROWS, schema=SCHEMA),
        arrow(tmp_path / "stream.arrow", ROWS, "stream"),
        arrow(tmp_path / "file.arrow", ROWS, "file"),
    ]


def test_cells_come_back(written):
    for file in map(str, written):
        assert open_table(file).rows == [2, 2, 1]
        for number, data in enumerate(CLIPS):
            path = cell_path(file, number // 2, number % 2, "audio")
            assert is_cell(path)
            assert split_cell(path) == (file, f"{number // 2}.{number % 2}:audio")
            assert read_cell(path) == data
        assert open_table(file).read(1, ["text", "audio.path"]) == [
            {"text": f"Row {number}.", "audio": {"path": None}} for number in (2, 3)
        ]
        assert open_table(file).nulls(1, "audio.bytes") == 0
        assert open_table(file).nulls(1, "audio.path") == 2


def test_binary_columns_and_lists_of_recordings(tmp_path):
    rows = [{"wav": CLIPS[0], "sounds": [{"bytes": data} for data in CLIPS[1:3]]}]
    file = str(parquet(tmp_path / "a.parquet", rows))
    assert read_cell(f"{file}#0.0:wav") == CLIPS[0]
    assert [read_cell(f"{file}#0.0:sounds[{item}]") for item in (0, 1)] == CLIPS[1:3]
    with pytest.raises(ValueError, match=r"sounds\[2\]: there is no such cell"):
        read_cell(f"{file}#0.0:sounds[2]")


def test_the_processor_reads_cells(tmp_path):
    data = clip(1.25)
    file = str(parquet(tmp_path / "a.parquet", [{"audio": {"bytes": data, "path": "a.flac"}}]))
    audio = Audio(f"{file}#0.0:audio", start=0.25)
    assert measured_seconds(audio) == 1.0
    assert torch.equal(load(audio), load(Audio(data, start=0.25)))


def test_what_is_wrong_is_said(written, tmp_path):
    for file in map(str, written):
        for cell, problem in [
            ("3.0:audio", "there is no such cell"),
            ("2.1:audio", "there is no such cell"),
            ("0.0:sound", "there is no such cell"),
            ("0:audio", "'0:audio' is no cell: GROUP.ROW:COLUMN is expected"),
            ("0.0:text", "no recording is in it"),
        ]:
            with pytest.raises(ValueError, match=problem):
                read_cell(f"{file}#{cell}")
        with pytest.raises(ValueError, match=r"gone.*: no file .*gone"):
            find_cell(f"{file.replace('.', 'gone.')}#0.0:audio")
    parquet(tmp_path / "null.parquet", [{"audio": {"bytes": None, "path": "a.wav"}}], schema=SCHEMA)
    with pytest.raises(ValueError, match=r"null\.parquet#0\.0:audio: no recording is in it"):
        read_cell(f"{tmp_path}/null.parquet#0.0:audio")
    for file in written:
        whole = file.read_bytes()
        for data in (whole[: len(whole) // 2], b"", b"nothing like a table", whole[:-4] + b"ABCD"):
            file.write_bytes(data)
            if data[-4:] != b"ABCD" or file.suffix == ".parquet":
                with pytest.raises(ValueError, match=rf"{file.name}: truncated or damaged, or no table") as error:
                    open_table(str(file))
                assert "\n" not in str(error.value)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a\.parquet: needs pyarrow: pip install pyarrow$"):
        open_table(str(tmp_path / "a.parquet"))


def test_of_a_table_in_storage_one_column_of_one_row_group_is_fetched(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec", reason="fsspec reads what lies in storage")
    system, fetched = fsspec.filesystem("memory"), []
    real = type(system).cat_file

    def cat_file(self, path, start=None, end=None, **options):
        fetched.append(end - start)
        return real(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    large = [os.urandom(1 << 20) for _ in range(6)]
    rows = [{"other": data, "audio": {"bytes": data[::-1], "path": None}} for data in large]
    parquet(tmp_path / "a.parquet", rows)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table, max_chunksize=2)
    for name in ("a.parquet", "a.arrow"):
        url = f"memory://tables/{name}"
        system.pipe_file(url, (tmp_path / name).read_bytes())
        storage.forget()
        table = open_table(url)
        assert sum(fetched) <= 4 * BLOCK, "what the table is"
        fetched.clear()
        assert table.nulls(1, "audio.bytes") == 0
        assert read_cell(f"{url}#1.1:audio") == large[3][::-1]
        assert read_cell(f"{url}#1.0:audio") == large[2][::-1]
        most = 2 if name == "a.parquet" else 4  # a record batch has all columns
        assert sum(fetched) < (most << 20) + (1 << 17), "once, for both rows"
        fetched.clear()
    system.store.clear()


def test_columns_are_kept_one_at_a_time(written):
    first, second = (open_table(str(file)) for file in written[:2])
    kept = first.column(0, "audio")
    assert first.column(0, "audio") is kept
    second.column(0, "audio")
    assert tables._kept[0] is second, "not one for each table"


def test_offsets_that_lead_elsewhere_in_memory_are_refused(tmp_path):
    offsets, data = (pa.py_buffer(np.array(x, np.int32).tobytes()) for x in ([0, 5, 3], [1, 2]))
    column = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, data])
    file = str(tmp_path / "a.arrow")
    with pa.ipc.new_stream(file, pa.schema([("audio", pa.binary())])) as writer:
        writer.write_batch(pa.record_batch([column], ["audio"]))
    with pytest.raises(ValueError, match=r"a\.arrow: record batch 0 is truncated or damaged \(.*offset"):
        read_cell(cell_path(file, 0, 0, "audio"))
