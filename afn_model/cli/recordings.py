"""Which recordings a command line means, and the file that keeps what was answered about them."""

from __future__ import annotations

import glob
import io
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from afn_model.files import atomic_path
from afn_model.storage import expand as stored
from afn_model.storage import is_pattern, is_url

STDIN = "-"
# What is taken for a recording in a folder; a file that is named is read whatever it is called.
KINDS = "wav wave flac ogg oga opus mp3 mp2 m4a m4b aac mp4 mov mkv mka webm avi wma aif aiff aifc au caf w64 amr 3gp"
SUFFIXES = frozenset(f".{kind}" for kind in KINDS.split())


def expand(arguments: Iterable[str], lists: Iterable[str] = ()) -> list[str]:
    """The recordings that arguments name, each once; see ``named``."""
    return list(named(arguments, lists))


def named(arguments: Iterable[str], lists: Iterable[str] = ()) -> dict[str, str]:
    """The recordings that arguments name, each once, and how a file about each of them is called.

    Args:
        arguments: as on the command line: files, folders (what is in and below them), patterns, and "-".
        lists: files that name one recording a line.

    Returns:
        {recording: its path below the folder, or the part of a pattern without wildcards, that it was found in; of a
        file that is named the last part}.

    Raises:
        ValueError: no recording in a folder, for a pattern, or at all; a list that cannot be read.
    """
    found: dict[str, str] = {}
    for name in [*arguments, *(line for file in lists for line in _lines(file))]:
        for recording, below in _found(name):
            found.setdefault(recording, below)
    if not found:
        raise ValueError("no recording given")
    return found


def _found(name: str) -> list[tuple[str, str]]:
    if name == STDIN:
        return [(name, "stdin")]
    if os.path.isdir(name):
        inside = sorted(path for path in Path(name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not inside:
            raise ValueError(f"{name}: no recording in this folder")
        return [(str(path), str(path.relative_to(name))) for path in inside]
    if is_url(name):
        return [(one, _last_part(one)) for one in (stored(name) if is_pattern(name) else [name])]
    if glob.has_magic(name) and not os.path.exists(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise ValueError(f"{name}: nothing is called like this")
        plain = os.path.dirname(name[: re.search(r"[*?[]", name).start()])  # type: ignore[union-attr]
        return [(one, os.path.relpath(one, plain) if plain else one) for one in matches]
    return [(name, _last_part(name))]


def _last_part(name: str) -> str:
    """Of a path, an address without its query, or ``x.tar#member``."""
    return re.split(r"[/#]", name.partition("?")[0] if is_url(name) else name)[-1] or name


def _lines(file: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == STDIN else Path(file).read_text("utf-8", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def part_about(file: str, start: float | None = None, end: float | None = None) -> dict[str, Any]:
    """The part of a message that stands for a recording, or for ``start`` to ``end`` seconds of it; "-" is read now.

    Raises:
        ValueError: "-" where standard input is a terminal.
    """
    part: dict[str, Any] = {"type": "audio", "start": start, "end": end}
    if file != STDIN:
        return part | {"path": file}
    if sys.stdin.isatty():
        raise ValueError("-: standard input is a terminal; send a recording through a pipe")
    return part | {"audio": named_bytes(sys.stdin.buffer.read(), "standard input")}


def named_bytes(data: bytes, name: str) -> io.BytesIO:
    """A file in memory that errors call by a name, and that can be read again."""
    file = io.BytesIO(data)
    file.name = name
    return file


class AnswerFile:
    """A JSON Lines file of answers that a later run goes on with.

    Args:
        path: of the file; made when the first answer is written.
        same: fields that all its answers must share with the coming ones, such as the question.
        again: recordings that are asked about again: answers about them, to whatever question, are taken out.

    Raises:
        ValueError: a file that holds something else, or answers with other values of ``same``.
    """

    def __init__(self, path: str | Path, same: dict[str, Any], again: Collection[str] = ()):
        self.path, self.done = Path(path), set[str]()
        if not self.path.exists():
            return
        whole, torn = self._read()
        kept = []
        for number, line in enumerate(whole, 1):
            row = _answer_of(line)
            if row is None:
                raise ValueError(f"{path}, line {number}: not an answer that --out has written; choose another file")
            differs = next((key for key, value in same.items() if row.get(key) != value), None)
            replaced = bool(again) and set(row["audio"]) <= set(again)
            if differs and not replaced:
                found = f"{differs} {row.get(differs)!r:.60} instead of {same[differs]!r:.60}"
                raise ValueError(f"{path}, line {number}: {found}; choose another file")
            if not replaced:
                kept.append(line)
                self.done.update(row["audio"])
        if torn and not torn.startswith(b'{"model": '):
            raise ValueError(f"{path}: not a file that --out has written; choose another one")
        if len(kept) < len(whole):
            with atomic_path(self.path) as file:
                file.write_bytes(b"".join(line + b"\n" for line in kept))
        elif torn:  # written when the last run was stopped
            with self.path.open("r+b") as file:
                file.truncate(self.path.stat().st_size - len(torn))

    def _read(self) -> tuple[list[bytes], bytes]:
        try:
            *whole, torn = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}") from None
        return whole, torn

    def rows(self) -> Iterator[dict[str, Any]]:
        """The answers in the file."""
        if self.path.exists():
            with self.path.open("rb") as file:
                yield from filter(None, map(_answer_of, file))

    def write(self, row: dict[str, Any]) -> None:
        """Adds an answer, at once."""
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _answer_of(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("audio"), list) and "answer" in row else None
