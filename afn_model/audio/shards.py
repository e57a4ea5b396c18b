"""Recordings in tar shards: ``talks/000.tar#clip-17.flac`` is a member of a tar file, read in constant time.

Beside every tar lies ``000.tar.index``: which tar it belongs to and, by the hash of a member's name, where each one's
bytes are. An index that belongs to another state of the tar, or is damaged, is made again. A tar file may lie in
storage: its index is then kept here, and of its members only what is asked for is fetched.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from afn_model.files import atomic_path
from afn_model.hashing import text_key
from afn_model.ranges import FIRST, BytesFile, LocalBytes, RemoteBytes, open_bytes
from afn_model.storage import NoSuchFile, StorageError, is_url, state

MARK = re.compile(r"\.tar(?:\?[^#]*)?#")  # of a web address the query belongs to the file
MAGIC = b"afntar2\n"
MEMBERS = np.dtype([("name", "<u8"), ("begin", "<i8"), ("bytes", "<i8")])
_HEADER = struct.Struct("<8sqqq32s32s32s")  # magic; bytes, mtime in ns, last header of the tar; digests: see _Archive
_SPARSE = -1  # where the bytes of a member would begin that was stored without its holes
_OPEN = 64  # tar files a process keeps open
# What the reading of a damaged or forged tar file has been seen to raise.
_DAMAGE = (tarfile.TarError, ValueError, ArithmeticError, MemoryError, RecursionError, OSError, EOFError)


def is_member(source) -> bool:
    """Whether an audio source names a member of a tar file."""
    return isinstance(source, str) and MARK.search(source) is not None


def split_path(path: str) -> tuple[str, str]:
    """(tar file, member) of ``x.tar#member``."""
    found = MARK.search(path)
    assert found is not None
    return path[: found.end() - 1], path[found.end() :]


def read_member(path: str, first: int = FIRST) -> bytes | RemoteBytes:
    """The bytes of ``x.tar#member``. Safe in threads and forked workers.

    Args:
        path: of tar file and member.
        first: a longer member of a tar file in storage is fetched piece by piece, when it is read.

    Raises:
        ValueError: no such tar file, one that is damaged or compressed, no such member in it, or a sparse one.
    """
    tar, member = split_path(path)
    return open_archive(tar, path).read(member, first)


def open_archive(tar: str, name: str | None = None) -> Archive:
    """A tar file with its index, made anew where it is not the index of this state of the file.

    Raises:
        ValueError: no such file, or one that is damaged or compressed; ``name`` is what the error calls it.
    """
    try:
        now = _state(tar)
    except NoSuchFile:
        raise ValueError(f"{name or tar}: no file {tar}") from None
    return _open_archive(tar, now.size, now.written)


def _state(tar: str) -> _State:
    found = state(tar)
    written = found.written if isinstance(found.written, int) else text_key(found.written.encode()) >> 1
    return _State(found.size, written)


@lru_cache(maxsize=_OPEN)
def _open_archive(tar: str, size: int, written: int) -> Archive:
    return Archive(tar, _State(size, written))


@dataclass(frozen=True)
class _State:
    """What a tar file's index must agree with before its headers are looked at."""

    size: int
    written: int  # mtime in ns; a hash of what storage says


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
        self.tar, self.size = tar, state.size
        self.file = None if is_url(tar) else LocalBytes(tar)
        table = _read_index(tar, state, self.file)
        if table is None:
            scan = _Scan(tar, state, open_bytes(tar) if self.file is None else self.file)
            for _ in scan:
                pass
            table = scan.table
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

    def read(self, member: str, first: int = FIRST) -> bytes | RemoteBytes:
        begin, size = self.find(member)
        if self.file is None:
            return RemoteBytes(self.tar, begin, size, self.size, first)
        data = self.file[begin : begin + size]
        if len(data) != size:
            raise ValueError(f"{self.tar}: truncated: {len(data)} of {size} bytes of {member!r} are there")
        return data


def _hash(member: str) -> int:
    return text_key(member.encode("utf-8", "surrogatepass"))


def index_places(path: str | Path) -> list[Path]:
    """Where the index of a corpus or tar file may lie, in the order in which the places are tried.

    Beside it, ``PATH.index``; where that folder cannot be written to, and for what lies in storage, in
    ``~/.cache/afn/index``. The environment's ``AFN_INDEX_DIR`` names a folder that comes before both.
    """
    beside, named = Path(f"{path}.index"), os.environ.get("AFN_INDEX_DIR")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(named) if named else Path(caches, "afn", "index")
    url = is_url(path)
    whole = str(path) if url else os.path.realpath(path)
    name = os.path.basename(whole.partition("?")[0])[-100:] if url else os.path.basename(whole)  # no signature in it
    other = folder / f"{text_key(os.fsencode(whole)):016x}-{name}.index"
    if url:
        return [other]
    return [other, beside] if named else [beside, other]


def _edges(file: LocalBytes | None, last: int) -> bytes:
    """SHA-256 of the headers of the first and the last member; of nothing in storage, where a file has a tag."""
    headers = b"" if file is None else b"".join(file[at : at + tarfile.BLOCKSIZE] for at in (0, last))
    return hashlib.sha256(headers).digest()


def _read_index(tar: str, state: _State, file: LocalBytes | None) -> _Table | None:
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


def _checked(data: bytes, state: _State, file: LocalBytes | None) -> _Table | None:
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


def walk(tar: str) -> _Scan:
    """The members of a tar file in order, with their bytes; its index is written when all have been met.

    Raises:
        ValueError: no such file, no access; while iterating, a file that is compressed, truncated or damaged.
    """
    try:
        return _Scan(tar, _state(tar), open_bytes(tar))
    except NoSuchFile:
        raise ValueError(f"{tar}: no such file") from None


class _Scan:
    """One pass over a tar file. ``table`` is there when it is over; ``read`` gives the bytes of a member."""

    def __init__(self, tar: str, state: _State, data: LocalBytes | RemoteBytes):
        self.tar, self.state, self.data = tar, state, data

    def read(self, member: tarfile.TarInfo) -> bytes:
        return self.data[member.offset_data : member.offset_data + member.size]

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        size = self.state.size
        found, last, digest = {}, 0, hashlib.sha256(f"{size} ".encode())
        try:
            with tarfile.open(fileobj=BytesFile(self.data), mode="r:") as archive:
                for member in archive:
                    last = member.offset
                    name = member.name.encode("utf-8", "surrogateescape")
                    digest.update(b"%b %d %d %d " % (name, member.offset_data, member.size, int(member.mtime)))
                    if member.isreg():
                        at = _SPARSE if member.issparse() else member.offset_data
                        found[_hash(member.name)] = (at, member.size)
                        yield member
                end = archive.offset
        except StorageError:
            raise
        except _DAMAGE as error:
            raise ValueError(f"{self.tar}: not an uncompressed tar file ({error})") from None
        # tarfile takes a torn or damaged header for the end, which is a block of zeros.
        if self.data[end : end + tarfile.BLOCKSIZE] != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"{self.tar}: truncated or damaged after {len(found)} members, at byte {end} of {size}")
        members = np.array([(name, *found[name]) for name in sorted(found)], MEMBERS)
        self.table = _Table(last, digest.digest(), members)
        _write_index(self.tar, self.state, self.data if isinstance(self.data, LocalBytes) else None, self.table)


def _write_index(tar: str, state: _State, file: LocalBytes | None, table: _Table) -> None:
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
