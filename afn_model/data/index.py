"""A JSON Lines corpus with an index beside it: any record in constant time, whatever the number of records.

The index holds, for every record, where its line begins and how many seconds of audio it has. It is read a few bytes at
a time instead of being mapped: pages of a map that were touched once would count as the worker's memory for good.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from afn_model.data.records import duration, measured_duration
from afn_model.files import fingerprint, fingerprint_as_of, write_json

VERSION = 1
FLUSH = 1 << 16  # entries buffered while building
ENTRY = struct.Struct("<qf")  # byte at which the line begins, seconds of audio


@dataclass(frozen=True)
class Facts:
    """What an index says about its corpus: ``fingerprint`` is the SHA-256 of every byte of it."""

    version: int
    records: int
    bytes: int
    seconds: float
    fingerprint: str


def folder_of(corpus: Path) -> Path:
    """The folder of a corpus' index: ``talks.jsonl.index`` for ``talks.jsonl``."""
    return corpus.with_name(corpus.name + ".index")


def build(
    corpus: str | Path,
    *,
    check: Callable[[dict], None] | None = None,
    progress: Callable[[int], None] | None = None,
    measure: bool | Literal["all"] = False,
) -> Facts:
    """Reads a corpus once and writes its index beside it, complete or not at all.

    Args:
        corpus: JSON Lines, one record a line; blank lines are passed over.
        check: called with every record; a ValueError it raises is given the line's number.
        progress: called with the bytes of every line.
        measure: read the headers of the recordings of records that give no duration, or of "all" of them.

    Raises:
        ValueError: no such file, a line that is no JSON object, a duration that is no number, a corpus without records,
            a recording that cannot be measured.
    """
    corpus = Path(corpus)
    if not corpus.is_file():
        raise ValueError(f"{corpus}: no such file")
    temporary = Path(tempfile.mkdtemp(prefix=".index-", dir=corpus.parent))
    try:
        facts = _write(corpus, temporary, check, progress, measure)
        write_json(temporary / "facts.json", asdict(facts))
        shutil.rmtree(folder_of(corpus), ignore_errors=True)
        temporary.rename(folder_of(corpus))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _write(corpus: Path, folder: Path, check, progress, measure) -> Facts:
    digest, total, count, held = hashlib.sha256(), 0.0, 0, bytearray()
    with corpus.open("rb") as lines, (folder / "entries").open("wb") as entries:
        at = 0
        for number, line in enumerate(lines, 1):
            digest.update(line)
            if line.strip():
                try:
                    record = parse(line)
                    seconds = duration(record)
                    if check:
                        check(record)
                    if measure == "all" or (measure and not seconds):
                        seconds = measured_duration(record, corpus.parent)
                except ValueError as error:
                    raise ValueError(f"{corpus}, line {number}: {error}") from None
                held += ENTRY.pack(at, seconds)
                total, count = total + seconds, count + 1
                if len(held) >= FLUSH * ENTRY.size:
                    entries.write(held)
                    held.clear()
            at += len(line)
            if progress:
                progress(len(line))
        entries.write(held + ENTRY.pack(at, 0.0))
    if not count:
        raise ValueError(f"{corpus}: no records")
    return Facts(VERSION, count, at, total, digest.hexdigest())


def parse(line: bytes) -> dict:
    """A record from its line.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object, not {type(record).__name__}")
    return record


class Corpus:
    """Random access to the records of an indexed corpus. Safe to use from forked workers and from threads.

    Args:
        path: the JSON Lines file; ``build`` has made its index.
        verify: read the whole corpus and compare its fingerprint; always done where it is newer than its index.

    Raises:
        ValueError: no index, one of another version, or a corpus that is not what was indexed.
    """

    def __init__(self, path: str | Path, *, verify: bool = False):
        self.path = Path(path)
        facts = folder_of(self.path) / "facts.json"
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        if not facts.is_file():
            raise ValueError(f"{self.path}: no index; make one with `afn data index {self.path}`")
        self.facts = Facts(**json.loads(facts.read_text()))
        if self.facts.version != VERSION:
            raise ValueError(f"{self.path}: its index has version {self.facts.version}, this is version {VERSION}")
        size = self.path.stat().st_size
        if size != self.facts.bytes:
            raise ValueError(f"{self.path}: {size} bytes, but {self.facts.bytes} were indexed: it has changed")
        written = self.path.stat().st_mtime_ns
        if verify:
            content = fingerprint(self.path)
        elif written > facts.stat().st_mtime_ns:
            content = fingerprint_as_of(self.path, size, written)
        else:
            content = self.facts.fingerprint
        if content != self.facts.fingerprint:
            raise ValueError(
                f"{self.path}: fingerprint {content[:12]}, indexed {self.facts.fingerprint[:12]}: it has changed"
            )
        self._lines = os.open(self.path, os.O_RDONLY)
        self._entries = os.open(folder_of(self.path) / "entries", os.O_RDONLY)
        entries = os.fstat(self._entries).st_size
        if entries != ENTRY.size * (self.facts.records + 1):
            raise ValueError(f"{self.path}: its index is damaged: {entries} bytes for {self.facts.records} records")

    def __len__(self) -> int:
        return self.facts.records

    def _entry(self, index: int, count: int) -> Iterator[tuple[int, float]]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: record {index} of {len(self)}")
        return ENTRY.iter_unpack(os.pread(self._entries, ENTRY.size * count, ENTRY.size * index))

    def __getitem__(self, index: int) -> dict:
        """The record, parsed anew every time."""
        (begin, _), (end, _) = self._entry(index, 2)
        return parse(os.pread(self._lines, end - begin, begin))

    def seconds(self, index: int) -> float:
        """Seconds of audio of a record, without reading it."""
        return next(iter(self._entry(index, 1)))[1]

    def __del__(self):
        for name in ("_lines", "_entries"):
            if name in self.__dict__:
                os.close(self.__dict__.pop(name))
