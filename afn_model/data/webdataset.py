"""Samples of WebDataset tar files as records: members that share a name up to its first dot are one sample.

``a/17.flac``, ``a/17.json`` and ``a/17.txt`` are the sample ``a/17``. The JSON object is its row; ``.txt`` is its
transcript and ``.cls`` its answer where the object has none. Members of a sample follow one another.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from afn_model.audio.shards import walk
from afn_model.data.foreign import ANSWER, RECORDS, TRANSCRIPT, Columns, record_of
from afn_model.data.tables import with_audios
from afn_model.storage import ahead, bare, is_url

AUDIO = frozenset("flac wav mp3 ogg oga opus m4a m4b aac mp4 webm wma aif aiff au caf w64 amr".split())  # noqa: SIM905
_THREADS = 8  # tar files in storage that are looked through at once
_TEXT = 1 << 24  # bytes of a text beside a recording, at most
_HEARD = "recording"  # the column that stands for the sample's recordings


def rows(
    files: Sequence[str], inside: Callable[[str], str], columns: Columns
) -> Iterator[tuple[str, dict | ValueError]]:
    """(place, record) of every sample of every tar file; an error in place of a sample that cannot be used.

    Args:
        files: uncompressed tar files.
        inside: a file's path as records write it.
        columns: where the usual names are not the right ones; an extension names what is in the member, as "cls".

    Raises:
        ValueError: a tar file that cannot be read, or is truncated.
    """
    threads = _THREADS if any(is_url(file) for file in files) else 0
    shards = ahead(_samples_of, files, threads) if threads else ((file, _samples(file)) for file in files)
    for file, samples in shards:
        for key, members in samples:
            try:
                if isinstance(members, ValueError):
                    raise members
                record = _record(members, inside(file), columns)
                record.setdefault("id", f"{posixpath.basename(bare(file)).removesuffix('.tar')}/{key}")
            except ValueError as error:
                record = error
            yield f"{file}, sample {key}", record


def _samples_of(file: str) -> list[tuple[str, dict[str, tuple[str, bytes]] | ValueError]]:
    return list(_samples(file))


def _samples(file: str) -> Iterator[tuple[str, dict[str, tuple[str, bytes]] | ValueError]]:
    """(key, extension → (name, content)) of the samples in order; contents of recordings are not read."""
    scan, current, members, wrong, met = walk(file), None, {}, None, set()
    for member in scan:
        folder, base = posixpath.split(member.name)
        stem, _, extension = base.partition(".")
        if not stem or not extension:
            continue
        key = posixpath.join(folder, stem)
        if key != current:
            if current is not None:
                yield current, wrong or members
            current, members, wrong = key, {}, None
            if key in met:  # of members of one name only the last is found: this recording, and the former text
                wrong = ValueError("comes twice in it, and its members must follow one another")
            met.add(key)
        extension = extension.lower()
        if extension in members:
            wrong = ValueError(f"two members are called {member.name}")
        if not _is_audio(extension) and member.size > _TEXT:
            continue
        members[extension] = (member.name, b"" if _is_audio(extension) else scan.read(member))
    if current is not None:
        yield current, wrong or members


def _is_audio(extension: str) -> bool:
    return extension.rpartition(".")[2] in AUDIO


def _record(members: dict[str, tuple[str, bytes]], tar: str, columns: Columns) -> dict:
    audios = [f"{tar}#{members[extension][0]}" for extension in sorted(members) if _is_audio(extension)]
    row: dict[str, Any] = {}
    for extension, (name, content) in members.items():
        if extension.rpartition(".")[2] == "json":
            row |= _object(name, content)
    for extension, (name, content) in members.items():
        if extension in ("txt", "cls") or extension in (columns.text, columns.question):
            row[extension] = _text(name, content)
    messages = next((key for key in RECORDS if row.get(key)), None)
    if messages is not None:
        return with_audios(row, messages, audios)
    if not audios:
        raise ValueError("no recording in it")
    if columns.text is None and not any(row.get(name) for name in (*TRANSCRIPT, *ANSWER)):
        row |= {"text": row["txt"]} if row.get("txt") else {"answer": row["cls"]} if row.get("cls") else {}
    return record_of(row | {_HEARD: audios}, replace(columns, audio=_HEARD), lambda path: path)


def _object(name: str, content: bytes) -> dict:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} is a JSON {type(found).__name__}, not an object")
    return found


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text in UTF-8: {error}") from None
