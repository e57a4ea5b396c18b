"""A JSON Lines corpus with an index beside it: any record in constant time, whatever the number of records.

The index holds, for every record, where its line begins and how many seconds of audio it has, and which tar files the
records name. It is read a few bytes at a time instead of being mapped: pages of a map that were touched once would
count as the worker's memory for good. ``index_places`` says where it lies.
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
from pathlib import Path
from typing import Literal

import numpy as np

from afn_model.audio.shards import MARK, index_places, is_member, open_archive, split_path
from afn_model.data.records import audios_of, duration, measured_duration, parse_sample
from afn_model.files import fingerprint, fingerprint_as_of, fingerprint_of, read_json, write_json

VERSION = 2
FLUSH = 1 << 16  # entries buffered while building
ENTRY = struct.Struct("<qf")  # byte at which the line begins, seconds of audio
_ENTRIES = np.dtype([("begin", "<i8"), ("seconds", "<f4")])
_NAMED = 100  # wrong lines that are named


@dataclass(frozen=True)
class Facts:
    """What an index says about its corpus.

    Args:
        version: of the format.
        records, bytes, seconds: of the corpus.
        fingerprint: SHA-256 of every byte of it.
        written: its time of change, in ns.
        archives: SHA-256 over the tar files that its records name; "" where they name none.
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


@dataclass(frozen=True)
class _TarState:
    """A tar file as it was indexed."""

    size: int
    written: int
    fingerprint: str


def build(
    corpus: str | Path,
    *,
    check: Callable[[dict], None] | None = None,
    progress: Callable[[int], None] | None = None,
    measure: bool | Literal["all"] = False,
) -> Facts:
    """Reads a corpus once and writes its index, complete or not at all.

    Args:
        corpus: JSON Lines, one record a line; blank lines are passed over.
        check: called with every record; a ValueError it raises is given the line's number.
        progress: called with the bytes of every line.
        measure: read the headers of the recordings of records that give no duration, or of "all" of them.

    Raises:
        ValueError: no such file, a corpus without records, a tar file that cannot be read, no place to write to; or a
            line for each line that is no JSON object, fails the check, has a duration that is no number, or a
            recording that cannot be measured.
    """
    corpus = Path(corpus)
    _require(corpus)
    problems = []
    for place in index_places(corpus):
        try:
            if place.parent != corpus.parent:
                place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".index-{secrets.token_hex(4)}")
            temporary.mkdir()
        except OSError as error:
            problems.append(f"{place.parent}: {error.strerror}")
            continue
        try:
            facts, tars = _write(corpus, temporary, check, progress, measure)
            write_json(temporary / "facts.json", asdict(facts))
            write_json(temporary / "archives.json", {tar: asdict(state) for tar, state in tars.items()})
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place, ignore_errors=True)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return facts
    raise ValueError(f"{corpus}: no place for its index: {'; '.join(problems)}; AFN_INDEX_DIR names one")


def _require(corpus: Path) -> None:
    if corpus.is_dir():
        raise ValueError(f"{corpus}: is a folder; `afn data import {corpus} OUT.jsonl` reads Kaldi folders")
    if not corpus.is_file():
        raise ValueError(f"{corpus}: no such file")
    with corpus.open("rb") as file:
        array = file.read(64).lstrip().startswith(b"[")
    if array or corpus.suffix.lower() in (".csv", ".tsv"):
        what = "a JSON array" if array else "a table"
        raise ValueError(f"{corpus}: {what}, not JSON Lines; `afn data import {corpus} OUT.jsonl` makes a corpus of it")


def _write(corpus: Path, folder: Path, check, progress, measure) -> tuple[Facts, dict[str, _TarState]]:
    digest, total, count, held = hashlib.sha256(), 0.0, 0, bytearray()
    wrong: list[str] = []
    named: set[str] = set()
    unmeasured = 0
    written = corpus.stat().st_mtime_ns
    with corpus.open("rb") as lines, (folder / "entries").open("wb") as entries:
        at = 0
        for number, line in enumerate(lines, 1):
            digest.update(line)
            if line.strip():
                seconds = 0.0
                try:
                    record = parse(line)
                    seconds = duration(record)
                    if check:
                        check(record)
                    if MARK.encode() in line:
                        named |= _tars(record, corpus.parent)
                    if measure == "all" or (measure and not seconds):
                        seconds = measured_duration(record, corpus.parent)
                    unmeasured += not seconds and bool(_sources(record))
                except ValueError as error:
                    wrong.append(f"{corpus}, line {number}: {error}")
                held += ENTRY.pack(at, seconds)
                total, count = total + seconds, count + 1
                if len(held) >= FLUSH * ENTRY.size:
                    entries.write(held)
                    held.clear()
            at += len(line)
            if progress:
                progress(len(line))
        entries.write(held + ENTRY.pack(at, 0.0))
    if wrong:
        more = [f"and {len(wrong) - _NAMED:,} more wrong lines of {count:,}"] if len(wrong) > _NAMED else []
        raise ValueError("\n".join(wrong[:_NAMED] + more))
    if not count:
        raise ValueError(f"{corpus}: no records")
    tars = {tar: _tar_state(corpus.parent / tar) for tar in sorted(named)}
    return Facts(VERSION, count, at, total, digest.hexdigest(), written, _archives(tars), unmeasured), tars


def _sources(record: dict) -> list[str]:
    """The recordings that a record names, as it writes them; none where it cannot be read and need not be."""
    try:
        return [audio.source for audio in audios_of(parse_sample(record, ""))]
    except ValueError:
        return []


def _tars(record: dict, folder: Path) -> set[str]:
    named = {split_path(source)[0] for source in _sources(record) if is_member(source)}
    return {tar for tar in named if (folder / tar).is_file()}


def _tar_state(tar: Path) -> _TarState:
    status = tar.stat()
    return _TarState(status.st_size, status.st_mtime_ns, open_archive(str(tar)).fingerprint)


def _archives(tars: dict[str, _TarState]) -> str:
    return fingerprint_of(f"{tar}\0{state.fingerprint}\n" for tar, state in sorted(tars.items())) if tars else ""


def parse(line: bytes) -> dict:
    """A record from its line.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object, not {type(record).__name__}")
    return record


class Corpus:
    """Random access to the records of an indexed corpus. Safe to use from forked workers and from threads.

    Args:
        path: the JSON Lines file; ``build`` has made its index.
        verify: read the whole corpus and compare its fingerprint; always done where its time of change is not the one
            that was indexed.

    Raises:
        ValueError: no index, one of another version or damaged, a corpus or a tar file that is not what was indexed.
    """

    def __init__(self, path: str | Path, *, verify: bool = False):
        self.path = Path(path)
        _require(self.path)
        status = self.path.stat()
        self.facts, self.index = _newest(self.path, status)
        size, written = status.st_size, status.st_mtime_ns
        if size != self.facts.bytes:
            raise ValueError(
                f"{self.path}: {size} bytes, but {self.facts.bytes} were indexed: it has changed; {self._again()}"
            )
        content = self.facts.fingerprint
        if verify:
            content = fingerprint(self.path)
        elif written != self.facts.written:
            content = fingerprint_as_of(self.path, size, written)
        if content != self.facts.fingerprint:
            told = f"fingerprint {content[:12]}, indexed {self.facts.fingerprint[:12]}"
            raise ValueError(f"{self.path}: {told}: it has changed; {self._again()}")
        tars = self._checked_tars()
        if written != self.facts.written or tars is not None:
            self._note(written, tars)
        self._lines = os.open(self.path, os.O_RDONLY)
        try:
            self._entries = os.open(self.index / "entries", os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"{self.path}: {self._damaged(error.strerror)}") from None
        entries = os.fstat(self._entries).st_size
        if entries != ENTRY.size * (self.facts.records + 1):
            raise ValueError(f"{self.path}: {self._damaged(f'{entries} bytes for {self.facts.records} records')}")

    def _again(self) -> str:
        return f"index it again with `afn data index {self.path}`"

    def _damaged(self, what: str | None) -> str:
        return f"its index is damaged ({what}); make it again with `afn data index {self.path}`"

    def _checked_tars(self) -> dict[str, _TarState] | None:
        """Compares the tar files with what was indexed; returns their states where times alone differ."""
        if not self.facts.archives:
            return None
        try:
            raw = read_json(self.index / "archives.json")
            tars = {tar: _TarState(**state) for tar, state in raw.items()}
            if _archives(tars) != self.facts.archives:
                raise ValueError("archives.json is not what was written")
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path}: {self._damaged(str(error))}") from None
        now = {}
        for tar, state in tars.items():
            file = self.path.parent / tar
            try:
                status = file.stat()
            except OSError:
                raise ValueError(f"{self.path}: its tar file {file}: no such file") from None
            now[tar] = state
            if (status.st_size, status.st_mtime_ns) != (state.size, state.written):
                now[tar] = _tar_state(file)
            if now[tar].fingerprint != state.fingerprint:
                raise ValueError(f"{self.path}: its tar file {file} is not the one that was indexed; {self._again()}")
        return now if now != tars else None

    def _note(self, written: int, tars: dict[str, _TarState] | None) -> None:
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


def _newest(corpus: Path, status: os.stat_result) -> tuple[Facts, Path]:
    """What the index says, and its folder; where there are several, the one of this state of the corpus."""
    found, problems = [], []
    for place in index_places(corpus):
        if (place / "facts.json").is_file():
            try:
                found.append((_facts(place / "facts.json"), place))
            except ValueError as error:
                problems.append(str(error))
    for facts, place in found:
        if (facts.bytes, facts.written) == (status.st_size, status.st_mtime_ns):
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
    places = index_places(corpus)
    return next((place for place in places if (place / "facts.json").is_file()), places[0])
