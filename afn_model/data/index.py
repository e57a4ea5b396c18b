"""A corpus with an index beside it: any record in constant time, whatever the number of records.

The index holds, for every record, where its line begins and how many seconds of audio it has, and which tar files and
tables the records name. It is read a few bytes at a time instead of being mapped: pages of a map that were touched once
would count as the worker's memory for good. ``index_places`` says where it lies.

Of a corpus that is no JSON Lines file on this machine the index has the records too, as JSON Lines: a copy of what lies
in storage (``afn_model.data.copies``), or what tables and tar files say; recordings stay where they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from afn_model.audio.shards import is_member
from afn_model.data.containers import (
    MARK,
    ContainerState,
    container_state,
    container_states,
    containers_of,
    digest_of,
    sources_of,
)
from afn_model.data.copies import RECORDS, fetch, make_room
from afn_model.data.corpus_files import CorpusFiles, locate
from afn_model.data.foreign import Columns
from afn_model.data.records import duration, measured_duration, parse
from afn_model.files import fingerprint, fingerprint_as_of, fingerprint_of, put_folder, read_json, write_json
from afn_model.storage import FileState, NoSuchFile, NotFromHereError, StorageError, ahead, is_url, join, states

VERSION = 2
FLUSH = 1 << 16  # entries buffered while building
ENTRY = struct.Struct("<qf")  # byte at which the line begins, seconds of audio
_ENTRIES = np.dtype([("begin", "<i8"), ("seconds", "<f4")])
_NAMED = 100  # wrong lines that are named
_THREADS = 16  # answers of storage that are waited for at once
_ATTEMPTS = 10  # where other processes remove a copy
SOURCE = "source.json"  # which files an index with records of its own was made of


@dataclass(frozen=True)
class Facts:
    """What an index says about its corpus.

    Args:
        version: of the format.
        records, bytes, seconds: of the corpus.
        fingerprint: SHA-256 of every byte of it.
        written: its time of change, in ns.
        archives: SHA-256 over the tar files and tables that its records name; "" where they name none.
        unmeasured: records with audio of unknown duration, which training cannot use.
    """

    version: int
    records: int
    bytes: int
    seconds: float
    fingerprint: str
    written: int
    archives: str
    unmeasured: int

    def __post_init__(self):
        whole = (self.version, self.records, self.bytes, self.written, self.unmeasured)
        if not all(type(value) is int for value in whole) or self.records < 1 or self.bytes < 1:
            raise ValueError("a number in it is no whole number, or below 1")
        if type(self.seconds) not in (int, float) or not 0 <= self.seconds < float("inf"):
            raise ValueError(f"its seconds are {self.seconds!r:.40}")
        if not isinstance(self.fingerprint, str) or not isinstance(self.archives, str):
            raise ValueError("a fingerprint in it is no text")


def build(
    corpus: str | Path,
    *,
    check: Callable[[dict], None] | None = None,
    progress: Callable[[int], None] | None = None,
    measure: bool | Literal["all"] = False,
    columns: Columns | None = None,
) -> Facts:
    """Reads a corpus once and writes its index, complete or not at all.

    Args:
        corpus: JSON Lines, one record a line, blank lines are passed over; tables or tar files: see ``locate``.
        check: called with every record; a ValueError it raises is given the line's number.
        progress: called with the bytes of every line.
        measure: read the headers of the recordings of records that give no duration, or of "all" of them.
        columns: of tables and tar files, where the usual names are not the right ones.

    Raises:
        ValueError: no such file, no access, a corpus without records, a tar file that cannot be read, no place to write
            to; or a line for each line that is no JSON object, fails the check, has a duration that is no number, or a
            recording that cannot be measured.
    """
    found = _found(corpus)
    problems = []
    for place in found.places:
        try:
            if place.parent != Path(found.name).parent:
                place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".index-{secrets.token_hex(4)}")
            temporary.mkdir()
        except OSError as error:
            problems.append(f"{place.parent}: {error.strerror}")
            continue
        try:
            gathered = None if found.plain else _gather(found, temporary, columns, check)
            facts, tars = _write(found, temporary, check, progress, measure)
            if gathered is not None:
                write_json(temporary / SOURCE, gathered)
            write_json(temporary / "facts.json", asdict(facts))
            write_json(temporary / "archives.json", {tar: asdict(state) for tar, state in tars.items()})
            put_folder(temporary, place)
            if gathered is not None and found.kind == "lines":
                make_room(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return facts
    raise ValueError(f"{corpus}: no place for its index: {'; '.join(problems)}; AFN_INDEX_DIR names one")


def _found(corpus: str | Path) -> CorpusFiles:
    found = locate(corpus)
    if found.plain:
        _require(Path(found.name))
    elif found.kind == "lines":
        _require_lines(found.name, b"")
    return found


def _require(corpus: Path) -> None:
    if not corpus.is_file():
        raise ValueError(f"{corpus}: no such file")
    with corpus.open("rb") as file:
        _require_lines(str(corpus), file.read(64))


def _require_lines(corpus: str, begin: bytes) -> None:
    array = begin.lstrip().startswith(b"[")
    if array or corpus.lower().endswith((".csv", ".tsv")):
        what = "a JSON array" if array else "a table"
        raise ValueError(f"{corpus}: {what}, not JSON Lines; `afn data import {corpus} OUT.jsonl` makes a corpus of it")


def _gather(found: CorpusFiles, folder: Path, columns: Columns | None, check) -> dict:
    """Writes the records of a corpus that is no JSON Lines file here; returns what they were made of.

    Raises:
        ValueError: a line for each record that cannot be used; without ``check`` they become records that cannot train.
    """
    lines = folder / RECORDS
    if found.kind == "lines":
        now = fetch(found.name, lines)
        with lines.open("rb") as file:
            _require_lines(found.name, file.read(64))
        return {"kind": found.kind, "files": [found.name], "state": asdict(now)}
    wrong, count = [], 0
    with lines.open("w", encoding="ascii") as file:
        for where, record in found.rows(columns or Columns()):
            count += 1
            try:
                if isinstance(record, ValueError):
                    raise record
                if check:
                    check(record)
            except ValueError as error:
                wrong.append(f"{where}: {error}")
                record = {"id": where, "problem": str(error)}
            file.write(json.dumps(record) + "\n")
    if check:
        _raise(wrong, count)
    files = [found.inside(file) for file in found.files]
    return {"kind": found.kind, "files": files, "columns": asdict(columns or Columns())}


def _raise(wrong: list[str], count: int) -> None:
    if wrong:
        more = [f"and {len(wrong) - _NAMED:,} more wrong lines of {count:,}"] if len(wrong) > _NAMED else []
        raise ValueError("\n".join(wrong[:_NAMED] + more))


def _write(found: CorpusFiles, folder: Path, check, progress, measure) -> tuple[Facts, dict[str, ContainerState]]:
    corpus = Path(found.name) if found.plain else folder / RECORDS
    check = check if found.kind == "lines" else None  # done when they were gathered
    unit, first = ("line", 1) if found.kind == "lines" else ("record", 0)
    digest, total, count, held = hashlib.sha256(), 0.0, 0, bytearray()
    wrong: list[str] = []
    named: set[str] = set()
    unmeasured = 0
    written = corpus.stat().st_mtime_ns if found.plain else 0
    read = partial(_read, check=check, measure=measure, folder=found.folder)
    threads = _THREADS if measure and is_url(found.folder) and found.kind != "tables" else 0  # row groups are large
    with corpus.open("rb") as lines, (folder / "entries").open("wb") as entries:
        at = 0
        for number, (line, told) in enumerate(ahead(read, lines, threads), first):
            digest.update(line)
            if line.strip():
                seconds = 0.0
                if isinstance(told, ValueError):
                    wrong.append(f"{found.name}, {unit} {number}: {told}")
                elif told is not None:
                    seconds = told.seconds
                    named |= told.containers
                    unmeasured += told.unmeasured
                held += ENTRY.pack(at, seconds)
                total, count = total + seconds, count + 1
                if len(held) >= FLUSH * ENTRY.size:
                    entries.write(held)
                    held.clear()
            at += len(line)
            if progress:
                progress(len(line))
        entries.write(held + ENTRY.pack(at, 0.0))
    _raise(wrong, count)
    if not count:
        raise ValueError(f"{found.name}: no records")
    if found.kind != "lines":
        named |= {found.inside(file) for file in found.files}
    tars = container_states(found, named)
    return Facts(VERSION, count, at, total, digest.hexdigest(), written, digest_of(tars), unmeasured), tars


@dataclass(frozen=True)
class _Told:
    """What the index needs of a record."""

    seconds: float
    containers: set[str]
    unmeasured: bool


def _read(line: bytes, check, measure, folder: str) -> _Told | ValueError | None:
    """What a line says, or what is wrong with it; None for a blank one.

    Raises:
        StorageError: no access, or no answer: the next line would fare no better.
    """
    if not line.strip():
        return None
    try:
        record = parse(line)
        seconds = duration(record)
        if check:
            check(record)
        if is_url(folder):
            for source in sources_of(record):
                join(folder, source)  # raises
        containers = containers_of(record) if MARK.search(line) else set()
        if measure == "all" or (measure and not seconds):
            seconds = measured_duration(record, folder)
        return _Told(seconds, containers, not seconds and bool(sources_of(record)))
    except ValueError as error:
        if isinstance(error, StorageError) and not isinstance(error, (NoSuchFile, NotFromHereError)):
            raise
        return error


class Corpus:
    """Random access to the records of an indexed corpus. Safe to use from forked workers and from threads.

    Args:
        path: the JSON Lines file, or what else ``locate`` finds; ``build`` has made its index.
        verify: read the whole corpus and compare its fingerprint; always done where its time of change is not the one
            that was indexed.

    Raises:
        ValueError: no index, one of another version or damaged, a corpus or a tar file that is not what was indexed, or
            that may not be read.

    Attributes:
        path: of a corpus on this machine; else its address.
        folder: that the paths of its recordings start from.
    """

    def __init__(self, path: str | Path, *, verify: bool = False):
        self.files = _found(path)
        self.path = self.files.name if is_url(self.files.name) else Path(self.files.name)
        self.folder = self.files.folder
        if not self.files.plain:
            self.facts, self.index = _newest(self.files, None)
            self._check_source()
            lines = self.index / RECORDS
            if verify and fingerprint(lines) != self.facts.fingerprint:
                raise ValueError(f"{self.path}: {self._damaged('its records are not what was written')}")
            self._open_entries()
            return
        lines = Path(self.files.name)
        status = lines.stat()
        self.facts, self.index = _newest(self.files, status)
        size, written = status.st_size, status.st_mtime_ns
        if size != self.facts.bytes:
            raise ValueError(
                f"{self.path}: {size} bytes, but {self.facts.bytes} were indexed: it has changed; {self._again()}"
            )
        content = self.facts.fingerprint
        if verify:
            content = fingerprint(lines)
        elif written != self.facts.written:
            content = fingerprint_as_of(lines, size, written)
        if content != self.facts.fingerprint:
            told = f"fingerprint {content[:12]}, indexed {self.facts.fingerprint[:12]}"
            raise ValueError(f"{self.path}: {told}: it has changed; {self._again()}")
        tars = self._checked_tars()
        if written != self.facts.written or tars is not None:
            self._note(written, tars)
        self._lines = self._opened(lines)
        self._open_entries()

    def _check_source(self) -> None:
        """Compares the files of a corpus that has its records in the index with those that it was made of."""
        try:
            source = read_json(self.index / SOURCE)
            files, state = source["files"], FileState(**source["state"]) if self.files.kind == "lines" else None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path}: {self._damaged(str(error))}") from None
        if state is not None:
            now = self._fetch(state)
            if now != state:
                with contextlib.suppress(OSError):
                    write_json(self.index / SOURCE, source | {"state": asdict(now)})
        elif files != (now := [self.files.inside(file) for file in self.files.files]):
            different = sorted(set(files) ^ set(now)) or now
            raise ValueError(f"{self.path}: {different[0]} has come or gone since it was indexed; {self._again()}")
        tars = self._checked_tars()
        if tars is not None:
            self._note(0, tars)
        if state is None:
            self._lines = self._opened(self.index / RECORDS)
        size = os.fstat(self._lines).st_size
        if size != self.facts.bytes:
            raise ValueError(f"{self.path}: {self._damaged(f'{size} bytes of records')}")
        if state is not None:
            make_room(self.index)

    def _fetch(self, state: FileState) -> FileState:
        """Opens the copy, made again where it has gone: another process may remove it to make room for its own."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                now = fetch(self.files.name, self.index / RECORDS, state, self.facts.fingerprint)
                self._lines = os.open(self.index / RECORDS, os.O_RDONLY)
                return now
        raise ValueError(f"{self.path}: others remove its copy to make room for their own: raise AFN_CACHE_GB")

    def _opened(self, file: Path) -> int:
        try:
            return os.open(file, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"{self.path}: {self._damaged(error.strerror)}") from None

    def _open_entries(self) -> None:
        self._entries = self._opened(self.index / "entries")
        entries = os.fstat(self._entries).st_size
        if entries != ENTRY.size * (self.facts.records + 1):
            raise ValueError(f"{self.path}: {self._damaged(f'{entries} bytes for {self.facts.records} records')}")

    def _again(self) -> str:
        return f"index it again with `afn data index {self.path}`"

    def _damaged(self, what: str | None) -> str:
        return f"its index is damaged ({what}); make it again with `afn data index {self.path}`"

    def _checked_tars(self) -> dict[str, ContainerState] | None:
        """Compares the tar files with what was indexed; returns their states where times alone differ."""
        if not self.facts.archives:
            return None
        try:
            raw = read_json(self.index / "archives.json")
            tars = {tar: ContainerState(**state) for tar, state in raw.items()}
            if digest_of(tars) != self.facts.archives:
                raise ValueError("archives.json is not what was written")
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path}: {self._damaged(str(error))}") from None
        now, found = {}, states(join(self.folder, tar) for tar in tars)
        for tar, state in tars.items():
            file = join(self.folder, tar)
            status = found[file]
            if not isinstance(status, FileState):
                raise ValueError(f"{self.path}: its tar file {status}" if is_member(f"{tar}#") else str(status))
            now[tar] = state
            if status != FileState(state.size, state.written):
                now[tar] = container_state(file, status)
            if now[tar].fingerprint != state.fingerprint:
                what = "tar file" if is_member(f"{tar}#") else "file"
                raise ValueError(f"{self.path}: its {what} {file} is not the one that was indexed; {self._again()}")
        return now if now != tars else None

    def _note(self, written: int, tars: dict[str, ContainerState] | None) -> None:
        """Notes new times of unchanged files, so that nobody reads them whole again; not where that is not allowed."""
        self.facts = replace(self.facts, written=written)
        with contextlib.suppress(OSError):
            write_json(self.index / "facts.json", asdict(self.facts))
            if tars is not None:
                write_json(self.index / "archives.json", {tar: asdict(state) for tar, state in tars.items()})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the index says about the content of corpus and tar files, not of when they were written."""
        return fingerprint_of([json.dumps(asdict(replace(self.facts, written=0)), sort_keys=True)])

    def __len__(self) -> int:
        return self.facts.records

    def _entry(self, index: int, count: int) -> Iterator[tuple[int, float]]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: record {index} of {len(self)}")
        return ENTRY.iter_unpack(os.pread(self._entries, ENTRY.size * count, ENTRY.size * index))

    def __getitem__(self, index: int) -> dict:
        """The record, parsed anew every time."""
        (begin, _), (end, _) = self._entry(index, 2)
        if not 0 <= begin < end <= self.facts.bytes:
            raise ValueError(f"{self.path}: {self._damaged(f'record {index} from byte {begin} to {end}')}")
        return parse(os.pread(self._lines, end - begin, begin))

    def seconds(self, index: int) -> float:
        """Seconds of audio of a record, without reading it."""
        return next(iter(self._entry(index, 1)))[1]

    def all_seconds(self, at_once: int = 1 << 20) -> Iterator[np.ndarray]:
        """Seconds of audio of all records in order, [at most ``at_once``] float64 at a time."""
        for first in range(0, len(self), at_once):
            count = min(at_once, len(self) - first)
            data = os.pread(self._entries, ENTRY.size * count, ENTRY.size * first)
            yield np.frombuffer(data, _ENTRIES)["seconds"].astype(np.float64)

    def __del__(self):
        for name in ("_lines", "_entries"):
            if name in self.__dict__:
                os.close(self.__dict__.pop(name))


def _newest(files: CorpusFiles, status: os.stat_result | None) -> tuple[Facts, Path]:
    """What the index says, and its folder; where there are several, the one of this state of the corpus."""
    corpus = files.name
    found, problems = [], []
    for place in files.places:
        if (place / "facts.json").is_file():
            try:
                found.append((_facts(place / "facts.json"), place))
            except ValueError as error:
                problems.append(str(error))
    for facts, place in found:
        if status is None or (facts.bytes, facts.written) == (status.st_size, status.st_mtime_ns):
            return facts, place
    if found:
        return found[0]
    if problems:
        again = f"make it again with `afn data index --measure {corpus}`"
        raise ValueError(f"{corpus}: its index cannot be used: {problems[0]}; {again}")
    raise ValueError(f"{corpus}: no index; make one with `afn data index --measure {corpus}`")


def _facts(file: Path) -> Facts:
    try:
        raw = read_json(file)
    except RecursionError:
        raise ValueError(f"{file}: nested too deeply") from None
    if raw.get("version") != VERSION:
        raise ValueError(f"it has version {raw.get('version')!r:.20}, this is version {VERSION}")
    if raw.keys() != {field.name for field in fields(Facts)}:
        raise ValueError(f"{file}: other keys than an index has")
    try:
        return Facts(**raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def folder_of(corpus: str | Path) -> Path:
    """The folder of a corpus' index; where it has none, the first place for one."""
    places = locate(corpus).places
    return next((place for place in places if (place / "facts.json").is_file()), places[0])
