"""Rows of Parquet files and of the Arrow files that ``datasets`` saves, as records: recordings are named, not read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afn_model.audio.tables import ArrowTable, ParquetTable, cell_path, features, open_table
from afn_model.data.foreign import ANSWER, AUDIO, QUESTION, RECORDS, TRANSCRIPT, Columns, record_of
from afn_model.storage import StorageError, bare, join, parent

AUDIOS = (*AUDIO, "audios", "sounds")
_TEXTS = ("axis", "task", "source")  # of a record with messages, where they are text
_OTHERS = ("id", "duration", "offset", "system", "truth", "rewards")


def rows(
    files: Sequence[str], inside: Callable[[str], str], columns: Columns
) -> Iterator[tuple[str, dict | ValueError]]:
    """(place, record) of every row of every file; an error in place of a row that cannot be used.

    Args:
        files: Parquet or Arrow files, all with the same columns.
        inside: a file's or recording's path as records write it.
        columns: where the usual names are not the right ones.

    Raises:
        ValueError: a file that cannot be read, or has other columns than the first.
    """
    first = None
    for file in files:
        table = open_table(file)
        found = _Columns.of(table, file, columns)
        if first is None:
            first = found
        elif set(found.names) != set(first.names):
            here, there = ", ".join(sorted(found.names)), ", ".join(sorted(first.names))
            raise ValueError(f"{file}: its columns are {here}, but those of {files[0]} are {there}")
        yield from _rows(table, file, found, inside, columns)


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that are read.

    Args:
        plain: all but those of ``audio``.
        audio: the column that has the recordings themselves; None where a plain one has their paths.
        kind: "struct", "binary" or "list".
        labels: column → the names of its classes, which are stored as numbers.
    """

    plain: tuple[str, ...]
    audio: str | None
    kind: str
    labels: dict[str, list[str]]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.plain, self.audio) if self.audio else self.plain

    @classmethod
    def of(cls, table: ParquetTable | ArrowTable, file: str, columns: Columns) -> _Columns:
        schema = table.schema
        if len(set(schema.names)) < len(schema.names):
            raise ValueError(f"{file}: two of its columns have one name: {', '.join(schema.names)}")
        given = [name for name in (columns.audio, columns.text, columns.question) if name is not None]
        absent = [name for name in given if name not in schema.names]
        if absent:
            raise ValueError(f"{file}: no column {absent[0]!r}; there are {', '.join(schema.names)}")
        named = AUDIOS if columns.audio is None else (columns.audio,)
        kinds = {name: kind for name in schema.names if name in named and (kind := _kind(schema.field(name).type))}
        if len(kinds) > 1:
            raise ValueError(f"{file}: {' or '.join(kinds)} may be the recording; --audio names it")
        audio = next(iter(kinds), None)
        wanted = {*_OTHERS, *_TEXTS, *RECORDS, *TRANSCRIPT, *ANSWER, *QUESTION, *given} | (set() if audio else {*named})
        plain = tuple(name for name in schema.names if name in wanted and name != audio and _useful(schema, name))
        kept = {name: value for name, value in features(schema).items() if name in plain and isinstance(value, dict)}
        labels = {name: value["names"] for name, value in kept.items() if isinstance(value.get("names"), list)}
        return cls(plain, audio, kinds.get(audio, "") if audio else "", labels)


def _useful(schema, name: str) -> bool:
    import pyarrow as pa

    kind = schema.field(name).type
    return name not in _TEXTS or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _kind(kind) -> str:
    """How a column holds recordings; "" where it does not."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return "list" if _kind(kind.value_type) in ("struct", "binary") else ""
    if types.is_struct(kind):
        return "struct" if kind.get_field_index("bytes") >= 0 else ""
    return "binary" if types.is_binary(kind) or types.is_large_binary(kind) else ""


def _rows(table, file: str, found: _Columns, inside, columns: Columns) -> Iterator[tuple[str, dict | ValueError]]:
    number, name = 0, inside(bare(file))
    for group, count in enumerate(table.rows):
        plain = table.read(group, found.plain) if found.plain else [{} for _ in range(count)]
        heard = _recordings(table, file, group, found, inside) if found.audio else [None] * count
        for row, recording in zip(plain, heard, strict=True):
            row = {key: _plain(value, found.labels.get(key)) for key, value in row.items()}
            try:
                record = _record(row, recording, found, columns, lambda path: inside(join(parent(file), path)))
                record.setdefault("id", f"{name}[{number}]")
            except ValueError as error:
                record = error
            yield f"{file}, row {number}", record
            number += 1


def _recordings(table, file: str, group: int, found: _Columns, inside) -> list[Any]:
    """What names each row's recording: a cell, a path beside the table, None, or a list of cells."""
    name, count, here = found.audio, table.rows[group], inside(file)
    assert name is not None
    if found.kind == "list":
        values = [value.as_py() if value.is_valid else None for value in table.column(group, name)]
        return [
            value
            and [
                cell_path(here, group, row, name, item) if _has_bytes(one) else _path_of(one, file, inside)
                for item, one in enumerate(value)
            ]
            for row, value in enumerate(values)
        ]
    cells = [cell_path(here, group, row, name) for row in range(count)]
    leaf = name if found.kind == "binary" else f"{name}.bytes"
    if table.nulls(group, leaf) == 0:
        return cells
    values = table.column(group, name)
    if found.kind == "binary":
        return [cell if value.is_valid else None for cell, value in zip(cells, values, strict=True)]
    return [
        cell if value.is_valid and value["bytes"].is_valid else _path_of(value.as_py(), file, inside)
        for cell, value in zip(cells, values, strict=True)
    ]


def _has_bytes(one: Any) -> bool:
    return isinstance(one, bytes) or (isinstance(one, dict) and one.get("bytes") is not None)


def _path_of(value: Any, file: str, inside) -> str | None:
    path = value.get("path") if isinstance(value, dict) else None
    try:
        return inside(join(parent(file), path)) if path else None
    except StorageError:  # a file of this machine, which the record is refused for
        return path


def _plain(value: Any, labels: list[str] | None = None) -> Any:
    """A value as JSON has it: without the fields that a row lacks, and the name of a class for its number."""
    if labels is not None and isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _record(row: dict, recording: Any, found: _Columns, columns: Columns, beside) -> dict:
    messages = next((key for key in RECORDS if row.get(key)), None)
    if messages is None:
        row = {key: value for key, value in row.items() if key not in RECORDS}
        if found.audio is None:
            return record_of(row, columns, beside)
        return record_of(row | {found.audio: recording}, replace(columns, audio=found.audio), lambda path: path)
    record = {key: value for key, value in row.items() if key in (*_OTHERS, *_TEXTS, messages) and value is not None}
    if isinstance(record[messages], str):
        try:
            record[messages] = json.loads(record[messages])
        except ValueError as error:
            raise ValueError(f"{messages} is text that is no JSON: {error}") from None
    if found.audio is None:
        record |= {key: row[key] for key in ("audios", "audio", "sounds", "sound") if row.get(key)}
        return record_of(record, columns, beside)
    audios = recording if isinstance(recording, list) else [] if recording is None else [recording]
    return with_audios(record, messages, audios)


def with_audios(record: dict, messages: str, audios: list[str]) -> dict:
    """A record whose recordings come beside its messages: in front of the first question, where none has a place.

    Args:
        record: with messages under ``messages``; the places of its recordings are ``<sound>``, ``<audio>``, or parts of
            type "audio", whose own paths are not looked at.
        messages: "messages" or "conversations".
        audios: paths of the recordings, as the record should have them.
    """
    said = record[messages]
    if not isinstance(said, list) or not all(isinstance(message, dict) for message in said):
        raise ValueError(f"{messages} must be a list of objects, got {said!r:.80}")
    said = [
        message | {"content": _as_text(message["content"])} if "content" in message else message for message in said
    ]
    record = {key: value for key, value in record.items() if key not in ("audio", "sounds", "sound")}
    texts = [message.get("content", message.get("value")) for message in said]
    if audios and not any("<sound" in text or "<audio" in text for text in texts if isinstance(text, str)):
        first = next((m for m in said if m.get("role", m.get("from")) in ("user", "human")), None)
        if first is None:
            raise ValueError("no message of a user, in front of which its recording could come")
        key = "content" if "content" in first else "value"
        put = first | {key: "<sound>\n" * len(audios) + str(first.get(key) or "")}
        said = [put if message is first else message for message in said]
    return record | {messages: said, "audios": audios}


def _as_text(content: Any) -> Any:
    """Parts of a message as one text; what is no part stays for the record's check to refuse."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    return "".join("<sound>" if part.get("type") == "audio" else str(part.get("text", "")) for part in content)
