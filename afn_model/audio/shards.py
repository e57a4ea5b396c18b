"""Recordings in tar shards: ``talks/000.tar#clip-17.flac`` is a member of a tar file, read in constant time.

Beside every tar lies ``000.tar.index``: which tar it belongs to and, by the hash of a member's name, where each one's
bytes are. An index that belongs to another state of the tar, or is damaged, is made again.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from afn_model.files import atomic_path
from afn_model.hashing import text_key

MARK = ".tar#"
MAGIC = b"afntar2\n"
MEMBERS = np.dtype([("name", "<u8"), ("begin", "<i8"), ("bytes", "<i8")])
_HEADER = struct.Struct("<8sqqq32s32s32s")  # magic; bytes, mtime in ns, last header of the tar; digests: see _Archive
_SPARSE = -1  # where the bytes of a member would begin that was stored without its holes
_OPEN = 64  # tar files a process keeps open
# What the reading of a damaged or forged tar file has been seen to raise.
_DAMAGE = (tarfile.TarError, ValueError, ArithmeticError, MemoryError, RecursionError, OSError, EOFError)


def is_member(source) -> bool:
    """Whether an audio source names a member of a tar file."""
    return isinstance(source, str) and MARK in source


def split_path(path: str) -> tuple[str, str]:
    """(tar file, member) of ``x.tar#member``."""
    at = path.index(MARK) + len(MARK)
    return path[: at - 1], path[at:]


def read_member(path: str) -> bytes:
    """The bytes of ``x.tar#member``. Safe in threads and forked workers.

    Raises:
        ValueError: no such tar file, one that is damaged or compressed, no such member in it, or a sparse one.
    """
    tar, member = split_path(path)
    return open_archive(tar, path).read(member)


def open_archive(tar: str, name: str | None = None) -> Archive:
    """A tar file with its index, made anew where it is not the index of this state of the file.

    Raises:
        ValueError: no such file, or one that is damaged or compressed; ``name`` is what the error calls it.
    """
    try:
        status = os.stat(tar)
    except (OSError, ValueError):
        raise ValueError(f"{name or tar}: no file {tar}") from None
    return _open_archive(tar, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=_OPEN)
def _open_archive(tar: str, size: int, written: int) -> Archive:
    return Archive(tar, _State(size, written))


@dataclass(frozen=True)
class _State:
    """What a tar file's index must agree with before its headers are looked at."""

    size: int
    written: int  # mtime in ns


@dataclass(frozen=True)
class _Table:
    """The members of a tar file.

    Args:
        last: byte at which the last member's header begins.
        digest: SHA-256 of the tar's size and of every member's name, place, size and time.
        members: ``MEMBERS`` in the order of their names' hashes.
    """

    last: int
    digest: bytes
    members: np.ndarray


class Archive:
    """An open tar file. ``fingerprint`` is the SHA-256 of its size and its members' names, places, sizes and times."""

    def __init__(self, tar: str, state: _State):
        self.tar = tar
        try:
            self.file = os.open(tar, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"{tar}: {error.strerror}") from None
        table = _read_index(tar, state, self.file)
        if table is None:
            table = _scan(tar, state.size)
            _write_index(tar, state, self.file, table)
        self.members, self.fingerprint = table.members, table.digest.hex()

    def find(self, member: str) -> tuple[int, int]:
        """(first byte, number of bytes) of a member.

        Raises:
            ValueError: no such member, or a sparse one.
        """
        name = np.uint64(_hash(member))
        at = int(np.searchsorted(self.members["name"], name))
        if at == len(self.members) or self.members["name"][at] != name:
            raise ValueError(f"{self.tar}: no member {member!r} among its {len(self.members)}")
        _, begin, size = self.members[at].item()
        if begin == _SPARSE:
            raise ValueError(f"{self.tar}: member {member!r} is sparse; write the file again, without tar's -S")
        return begin, size

    def read(self, member: str) -> bytes:
        begin, size = self.find(member)
        data = os.pread(self.file, size, begin)
        if len(data) != size:
            raise ValueError(f"{self.tar}: truncated: {len(data)} of {size} bytes of {member!r} are there")
        return data

    def __del__(self):
        if "file" in self.__dict__:
            os.close(self.file)


def _hash(member: str) -> int:
    return text_key(member.encode("utf-8", "surrogatepass"))


def index_places(path: str | Path) -> list[Path]:
    """Where the index of a corpus or tar file may lie, in the order in which the places are tried.

    Beside it, ``PATH.index``; where that folder cannot be written to, in ``~/.cache/afn/index``. The environment's
    ``AFN_INDEX_DIR`` names a folder that comes before both.
    """
    beside, named = Path(f"{path}.index"), os.environ.get("AFN_INDEX_DIR")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(named) if named else Path(caches, "afn", "index")
    whole = os.path.realpath(path)
    other = folder / f"{text_key(os.fsencode(whole)):016x}-{os.path.basename(whole)}.index"
    return [other, beside] if named else [beside, other]


def _edges(file: int, last: int) -> bytes:
    """SHA-256 of the headers of the first and the last member."""
    return hashlib.sha256(b"".join(os.pread(file, tarfile.BLOCKSIZE, at) for at in (0, last))).digest()


def _read_index(tar: str, state: _State, file: int) -> _Table | None:
    """The members by hash, or None where there is no index of this state of the tar file."""
    most = _HEADER.size + MEMBERS.itemsize * (state.size // tarfile.BLOCKSIZE)  # every member has a header
    for place in index_places(tar):
        try:
            if place.stat().st_size > most:
                continue
            data = place.read_bytes()
        except (OSError, ValueError):
            continue
        if (table := _checked(data, state, file)) is not None:
            return table
    return None


def _checked(data: bytes, state: _State, file: int) -> _Table | None:
    body = data[_HEADER.size :]
    if len(data) < _HEADER.size or len(body) % MEMBERS.itemsize:
        return None
    magic, size, written, last, edges, digest, content = _HEADER.unpack(data[: _HEADER.size])
    if magic != MAGIC or _State(size, written) != state or content != hashlib.sha256(body).digest():
        return None
    members = np.frombuffer(body, MEMBERS)
    begin, length = members["begin"], members["bytes"]
    inside = (begin >= 0) & (length >= 0) & (begin <= size) & (length <= size - begin)
    if not (inside | (begin == _SPARSE)).all() or not 0 <= last <= size or edges != _edges(file, last):
        return None
    return _Table(last, digest, members)


def _scan(tar: str, size: int) -> _Table:
    found, last, digest = {}, 0, hashlib.sha256(f"{size} ".encode())
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                last = member.offset
                name = member.name.encode("utf-8", "surrogateescape")
                digest.update(b"%b %d %d %d " % (name, member.offset_data, member.size, int(member.mtime)))
                if member.isreg():
                    at = _SPARSE if member.issparse() else member.offset_data
                    found[_hash(member.name)] = (at, member.size)
            end = archive.offset
    except _DAMAGE as error:
        raise ValueError(f"{tar}: not an uncompressed tar file ({error})") from None
    # tarfile takes a torn or damaged header for the end, which is a block of zeros.
    with open(tar, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"{tar}: truncated or damaged after {len(found)} members, at byte {end} of {size}")
    return _Table(last, digest.digest(), np.array([(name, *found[name]) for name in sorted(found)], MEMBERS))


def _write_index(tar: str, state: _State, file: int, table: _Table) -> None:
    """Keeps the index for others; where it cannot be written, every process makes its own."""
    body = table.members.tobytes()
    edges, content = _edges(file, table.last), hashlib.sha256(body).digest()
    header = _HEADER.pack(MAGIC, state.size, state.written, table.last, edges, table.digest, content)
    for place in index_places(tar):
        try:
            if place != Path(f"{tar}.index"):
                place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(place) as temporary:
                temporary.write_bytes(header + body)
            return
        except (OSError, ValueError):
            continue


class ShardWriter:
    """Writes recordings into tar files ``PREFIX-00000.tar``, ``PREFIX-00001.tar``, ...; a file appears when complete.

    with ShardWriter(folder / "shards", "train", 1 << 30) as shards:
        path = shards.add("clip-17.flac", data)         # "shards/train-00000.tar#clip-17.flac"

    Args:
        folder: made if absent.
        prefix: of the file names.
        max_bytes: a new file is begun where the next recording would make one larger than this.
        relative_to: folder that the paths are relative to, that of the .jsonl file; the parent of ``folder`` if None.

    Raises:
        ValueError: from ``add``: a name already in this tar file.
    """

    def __init__(self, folder: str | Path, prefix: str, max_bytes: int, *, relative_to: str | Path | None = None):
        self.folder, self.prefix, self.max_bytes = Path(folder), prefix, max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base = os.path.relpath(self.folder, self.folder.parent if relative_to is None else relative_to)
        self.count, self.archive = 0, None

    def add(self, name: str, data: bytes) -> str:
        """Appends a recording; returns the path to write into a record."""
        if self.archive is not None and self.archive.offset + len(data) + 1024 > self.max_bytes:
            self._finish(self.archive)
        archive = self._begin() if self.archive is None else self.archive
        if name in self.names:
            raise ValueError(f"{self.path}: a second recording named {name!r}")
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
        self.names.add(name)
        return os.path.join(self.base, f"{self.path.name}#{name}")

    def _begin(self) -> tarfile.TarFile:
        self.path = self.folder / f"{self.prefix}-{self.count:05d}.tar"
        self.archive = tarfile.open(self._unfinished, "w:", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.names, self.count = set(), self.count + 1
        return self.archive

    @property
    def _unfinished(self) -> str:
        return f"{self.path}.partial"

    def _finish(self, archive: tarfile.TarFile) -> None:
        archive.close()
        self.archive = None
        os.replace(self._unfinished, self.path)
        open_archive(str(self.path))  # which writes the index

    def close(self) -> None:
        """Finishes the last file."""
        if self.archive is not None:
            self._finish(self.archive)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
        elif self.archive is not None:
            self.archive.close()
            os.unlink(self._unfinished)
