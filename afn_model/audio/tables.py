"""Recordings in tables: ``talks.parquet#3.17:audio`` is row 17 of row group 3, column ``audio``.

A Parquet file is read a column of a row group at a time. An Arrow file, as ``datasets`` saves one, is read a record
batch at a time; here on this machine it is mapped. ``datasets`` itself is not needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from afn_model.ranges import BytesFile, open_bytes
from afn_model.storage import FileState, NoSuchFile, StorageError, bare, is_url, state

MARK = re.compile(r"\.(?:parquet|arrow)(?:\?[^#]*)?#")  # of a web address the query belongs to the file
_CELL = re.compile(r"(\d+)\.(\d+):(.+?)(?:\[(\d+)\])?", re.S)
_OPEN = 16  # tables a process keeps open
_CONTINUES = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # kinds of Arrow messages


def _pyarrow(name: str = "pyarrow") -> Any:
    """An optional package, which types are not checked against."""
    return import_module(name)


def is_cell(source) -> bool:
    """Whether an audio source names a cell of a table."""
    return isinstance(source, str) and MARK.search(source) is not None


def split_cell(path: str) -> tuple[str, str]:
    """(file, cell) of ``x.parquet#cell``."""
    found = MARK.search(path)
    assert found is not None
    return path[: found.end() - 1], path[found.end() :]


def cell_path(file: str, group: int, row: int, column: str, item: int | None = None) -> str:
    """What names a cell, or an item of the list in it."""
    return f"{file}#{group}.{row}:{column}" + ("" if item is None else f"[{item}]")


def read_cell(path: str) -> bytes:
    """The bytes of the recording in a cell. Safe in threads and forked workers.

    Raises:
        ValueError: no such file, one that is damaged, no such cell, or nothing in it.
    """
    table, group, row, column, item = find_cell(path)
    try:
        value = table.column(group, column)[row].as_py()
    except IndexError:  # fewer rows than the file says
        raise ValueError(f"{path}: there is no such cell in it") from None
    if item is not None:
        items = value or []
        if item >= len(items):
            raise ValueError(f"{path}: there is no such cell in it")
        value = items[item]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError(f"{path}: no recording is in it")
    return data


def find_cell(path: str) -> tuple[ParquetTable | ArrowTable, int, int, str, int | None]:
    """(table, row group, row, column, item of a list) of a cell, of which nothing is read.

    Raises:
        ValueError: no such file, one that is damaged, no such cell.
    """
    file, cell = split_cell(path)
    found = _CELL.fullmatch(cell)
    if found is None:
        raise ValueError(f"{path}: {cell!r} is no cell: GROUP.ROW:COLUMN is expected")
    group, row, column = int(found[1]), int(found[2]), found[3]
    try:
        table = open_table(file)
    except NoSuchFile:
        raise ValueError(f"{path}: no file {file}") from None
    if column not in table.schema.names or group >= len(table.rows) or row >= table.rows[group]:
        raise ValueError(f"{path}: there is no such cell in it")
    return table, group, row, column, None if found[4] is None else int(found[4])


def open_table(file: str) -> ParquetTable | ArrowTable:
    """A Parquet or Arrow file.

    Raises:
        NoSuchFile: there is none.
        ValueError: pyarrow is missing; a file that is damaged or something else.
    """
    return _open_table(os.getpid(), file, state(file))  # of this process: pyarrow has threads


@lru_cache(maxsize=_OPEN)
def _open_table(process: int, file: str, now: FileState) -> ParquetTable | ArrowTable:
    try:
        pa = _pyarrow()
    except ImportError:
        raise ValueError(f"{file}: needs pyarrow: pip install pyarrow") from None
    try:
        return (ArrowTable if bare(file).lower().endswith(".arrow") else ParquetTable)(file, now)
    except StorageError:
        raise
    except (pa.ArrowException, OSError, ValueError, IndexError, EOFError, struct.error) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: truncated or damaged, or no table ({said})") from None


_kept: tuple[Any, tuple, Any] = (None, (), None)


def _last(table: Any, key: tuple, read: Callable[[], Any]) -> Any:
    """What was read last is kept, one for the whole process: a row group may have hundreds of megabytes."""
    global _kept
    kept = _kept
    if kept[0] is not table or kept[1] != key:
        _kept = kept = (None, (), None)
        _kept = kept = (table, key, read())
    return kept[2]


class ParquetTable:
    """An open Parquet file.

    Attributes:
        rows: of each row group.
        schema: pyarrow's.
        fingerprint: SHA-256 of the footer, which says where everything lies and how long it is.
    """

    def __init__(self, path: str, now: FileState):
        data = open_bytes(path)
        self.path, footer = path, data[max(0, now.size - 8) :]
        if len(footer) < 8 or footer[4:] != b"PAR1":
            raise ValueError("it does not end as a Parquet file does")
        length = 8 + int.from_bytes(footer[:4], "little")
        self.fingerprint = hashlib.sha256(b"%d " % now.size + data[max(0, now.size - length) :]).hexdigest()
        self._file = _pyarrow("pyarrow.parquet").ParquetFile(
            BytesFile(data) if is_url(path) else path, pre_buffer=False
        )
        self.schema, self._groups = self._file.schema_arrow, self._file.metadata
        self.rows = [self._groups.row_group(group).num_rows for group in range(self._groups.num_row_groups)]

    def read(self, group: int, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows with some columns; ``name.field`` is a field of one."""
        try:
            return self._read(group, names).to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: row group {group} has text that is no UTF-8 ({error})") from None

    def _read(self, group: int, names: Sequence[str]):
        pa = _pyarrow()
        try:
            return self._file.read_row_group(group, columns=list(names), use_threads=False)
        except StorageError:
            raise
        except (pa.ArrowException, OSError, IndexError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.path}: row group {group} is truncated or damaged ({said})") from None

    def column(self, group: int, name: str):
        """A whole column of a row group."""
        return _last(self, (group, name), lambda: self._read(group, [name]).column(name))

    def nulls(self, group: int, leaf: str) -> int | None:
        """How many values of a leaf column (``audio.bytes``) are null; None where the footer does not say."""
        columns = self._groups.row_group(group)
        for number in range(columns.num_columns):
            found = columns.column(number)
            if found.path_in_schema == leaf:
                statistics = found.statistics
                return statistics.null_count if statistics is not None and statistics.has_null_count else None
        return None


class ArrowTable:
    """An open Arrow file or stream; attributes as of ``ParquetTable``, with a record batch for a row group.

    Source: Arrow columnar format, Encapsulated message format; FlatBuffers, tables and vtables.
    """

    def __init__(self, path: str, now: FileState):
        pa = _pyarrow()
        self.path, self._data = path, open_bytes(path)
        self._mapped = None if is_url(path) else pa.memory_map(path)
        digest, self.rows, self._batches = hashlib.sha256(b"%d " % now.size), [], []
        at = 8 if self._data[:6] == b"ARROW1" else 0
        self.schema: Any = None
        while True:
            head = self._data[at : at + 8]
            length = int.from_bytes(head[4:8], "little")
            if head[:4] != _CONTINUES or len(head) < 8:
                raise ValueError(f"no message at byte {at} of {now.size}")
            if not length:
                break
            metadata = self._data[at + 8 : at + 8 + length]
            kind, rows, body = _message(metadata)
            end = at + 8 + length + body
            if end > now.size:
                raise ValueError(f"{now.size} bytes, but a message ends at {end}")
            if kind == _SCHEMA:
                self.schema = pa.ipc.read_schema(pa.py_buffer(self._data[at:end]))
            elif kind == _BATCH:
                self.rows.append(rows)
                self._batches.append((at, end))
            else:
                raise ValueError("columns in it are encoded by dictionaries, which are not read")
            digest.update(metadata)
            at = end
        if self.schema is None:
            raise ValueError("no schema in it")
        self.fingerprint = digest.hexdigest()

    def _batch(self, group: int):
        return _last(self, (group,), lambda: self._fetched(group))

    def _fetched(self, group: int):
        pa = _pyarrow()
        begin, end = self._batches[group]
        if self._mapped is None:
            source = pa.py_buffer(self._data[begin:end])
        else:
            self._mapped.seek(begin)
            source = self._mapped.read_buffer(end - begin)
        try:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.BufferReader(source)), self.schema)
            batch.validate(full=True)  # or a wrong offset reads other memory, or none
        except (pa.ArrowException, OSError, EOFError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.path}: record batch {group} is truncated or damaged ({said})") from None
        if batch.num_rows != self.rows[group]:
            raise ValueError(f"{self.path}: record batch {group} is damaged: {batch.num_rows} rows")
        return batch

    def read(self, group: int, names: Sequence[str]) -> list[dict[str, Any]]:
        batch, rows = self._batch(group), [{} for _ in range(self.rows[group])]
        for name in names:
            column, _, part = name.partition(".")
            values = batch.column(column if part else name)
            values = values.field(part) if part else values
            for row, value in zip(rows, values, strict=True):
                found = value.as_py()
                row[column] = {part: found} if part else found
        return rows

    def column(self, group: int, name: str):
        return self._batch(group).column(name)

    def nulls(self, group: int, leaf: str) -> int | None:
        column, _, part = leaf.partition(".")
        values = self._batch(group).column(column)
        return (values.field(part) if part else values).null_count


def _message(metadata: bytes) -> tuple[int, int, int]:
    """(kind, rows, bytes of the body) of an Arrow message, from its FlatBuffer."""
    root = struct.unpack_from("<I", metadata)[0]
    kind_at, header_at, body_at = (_field(metadata, root, number) for number in (1, 2, 3))
    kind = metadata[kind_at] if kind_at else 0
    body = struct.unpack_from("<q", metadata, body_at)[0] if body_at else 0
    rows = 0
    if kind == _BATCH and header_at:
        length_at = _field(metadata, header_at + struct.unpack_from("<I", metadata, header_at)[0], 0)
        rows = struct.unpack_from("<q", metadata, length_at)[0] if length_at else 0
    if body < 0 or rows < 0:
        raise ValueError("a message in it has a negative length")
    return kind, rows, body


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a FlatBuffers table lies; 0 where it has none."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + place)[0] if place + 2 <= size else 0
    return table + offset if offset else 0


def features(schema) -> dict[str, Any]:
    """What ``datasets`` wrote into a schema of its columns, by name; nothing where it did not write it."""
    try:
        whole = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return whole.get("info", {}).get("features", {}) or {}
    except (ValueError, AttributeError):
        return {}
