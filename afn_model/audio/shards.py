"""Recordings in tar shards: ``talks/000.tar#clip-17.flac`` is a member of a tar file, read in constant time.

Beside every tar lies ``000.tar.index``: its size and, by the hash of a member's name, where each one's bytes are.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from afn_model.files import atomic_path
from afn_model.hashing import text_key

MARK = ".tar#"
MAGIC = b"afntar1\n"
MEMBERS = np.dtype([("name", "<u8"), ("begin", "<i8"), ("bytes", "<i8")])
_HEADER = struct.Struct("<8sq")  # magic, bytes of the tar
_OPEN = 64  # tar files a process keeps open


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
        ValueError: no such tar file, one that is damaged or compressed, or no such member in it.
    """
    tar, member = split_path(path)
    try:
        status = os.stat(tar)
    except OSError:
        raise ValueError(f"{path}: no file {tar}") from None
    return _open_shard(tar, status.st_size, status.st_mtime_ns).read(member)


class _Shard:
    def __init__(self, tar: str, size: int):
        self.tar = tar
        members = _read_index(tar, size)
        if members is None:
            members = _scan(tar, size)
            _write_index(tar, size, members)
        self.members = members
        self.file = os.open(tar, os.O_RDONLY)

    def read(self, member: str) -> bytes:
        name = np.uint64(_hash(member))
        at = int(np.searchsorted(self.members["name"], name))
        if at == len(self.members) or self.members["name"][at] != name:
            raise ValueError(f"{self.tar}: no member {member!r} among its {len(self.members)}")
        _, begin, size = self.members[at].item()
        data = os.pread(self.file, size, begin)
        if len(data) != size:
            raise ValueError(f"{self.tar}: truncated: {len(data)} of {size} bytes of {member!r} are there")
        return data

    def __del__(self):
        if "file" in self.__dict__:
            os.close(self.file)


@lru_cache(maxsize=_OPEN)
def _open_shard(tar: str, size: int, changed: int) -> _Shard:
    return _Shard(tar, size)


def _hash(member: str) -> int:
    return text_key(member.encode("utf-8", "surrogateescape"))


def index_path(tar: str | Path) -> str:
    """Where a tar file's index lies."""
    return f"{tar}.index"


def _read_index(tar: str, size: int) -> np.ndarray | None:
    """The members by hash, or None where the index is absent or belongs to another state of the tar file."""
    path = index_path(tar)
    try:
        if os.stat(path).st_mtime_ns < os.stat(tar).st_mtime_ns:
            return None
        data = Path(path).read_bytes()
    except OSError:
        return None
    body = data[_HEADER.size :]
    if data[: _HEADER.size] != _HEADER.pack(MAGIC, size) or len(body) % MEMBERS.itemsize:
        return None
    return np.frombuffer(body, MEMBERS)


def _scan(tar: str, size: int) -> np.ndarray:
    found = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if member.isreg():
                    found[_hash(member.name)] = (member.offset_data, member.size)
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(f"{tar}: not an uncompressed tar file ({error})") from None
    # tarfile takes a torn or damaged header for the end, which is a block of zeros.
    with open(tar, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"{tar}: truncated or damaged after {len(found)} members, at byte {end} of {size}")
    return _members(found)


def _members(found: dict[int, tuple[int, int]]) -> np.ndarray:
    return np.array([(name, *found[name]) for name in sorted(found)], MEMBERS)


def _write_index(tar: str, size: int, members: np.ndarray) -> None:
    """Keeps the index for others; where it cannot be written, every process makes its own."""
    with contextlib.suppress(OSError, ValueError), atomic_path(index_path(tar)) as temporary:
        temporary.write_bytes(_HEADER.pack(MAGIC, size) + members.tobytes())


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
        if _hash(name) in self.found:
            raise ValueError(f"{self.path}: a second recording named {name!r}")
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self.found[_hash(name)] = (archive.offset - padded, len(data))
        return os.path.join(self.base, f"{self.path.name}#{name}")

    def _begin(self) -> tarfile.TarFile:
        self.path = self.folder / f"{self.prefix}-{self.count:05d}.tar"
        self.archive = tarfile.open(self._unfinished, "w:", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.found, self.count = {}, self.count + 1
        return self.archive

    @property
    def _unfinished(self) -> str:
        return f"{self.path}.partial"

    def _finish(self, archive: tarfile.TarFile) -> None:
        archive.close()
        self.archive = None
        size = os.path.getsize(self._unfinished)
        os.replace(self._unfinished, self.path)
        _write_index(str(self.path), size, _members(self.found))

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
