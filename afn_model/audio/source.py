"""The bytes of a recording: of a path, of standard input, of a pipe, of an open file, of an address in storage."""

from __future__ import annotations

import mmap
import os
import stat
import sys
from dataclasses import dataclass
from typing import Any

from afn_model.ranges import RemoteBytes
from afn_model.storage import is_url, shown

STDIN = "-"


@dataclass(frozen=True)
class AudioSource:
    """A recording's bytes, and the path of the file that they are all of, None where there is none.

    Args:
        name: what errors and warnings call it.
        data: bytes-like; mapped, not read, where it is a file, and fetched by range where it is in storage.
        path: of an ordinary file.
    """

    name: str
    data: bytes | mmap.mmap | RemoteBytes
    path: str | None = None


def is_pipe(source) -> bool:
    """Whether a source can be read only once: ``-`` (standard input), a pipe, a terminal, a socket."""
    if isinstance(source, (bytes, bytearray, memoryview)) or not isinstance(source, (str, os.PathLike)):
        return False
    if os.fspath(source) == STDIN:
        return True
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def read_source(source, name: str | None = None) -> AudioSource:
    """Reads a recording, or maps it where it is a file.

    Args:
        source: a path, an address in storage, ``-`` for standard input, bytes, or a file open for reading in binary
            mode. An open file that can be rewound is read from its beginning, wherever it stands.
        name: what errors call it; its path if None.

    Raises:
        ValueError: one line with the name: no such file, a folder, a web address, not readable, or nothing in it.
    """
    path = None
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = name or "<bytes>", bytes(source)
    elif isinstance(source, RemoteBytes):
        name, data = name or source.url, source
    elif hasattr(source, "read"):
        name = name or str(getattr(source, "name", "<file>"))
        data = _read_open(source, name)
    else:
        path = os.fspath(source)
        name = name or path
        data = _read_path(path, name)
    name = shown(os.fsdecode(name))
    if not len(data):
        raise ValueError(f"{name}: the file is empty")
    return AudioSource(name, data, path if isinstance(data, mmap.mmap) else None)


def _read_open(file: Any, name: str) -> bytes:
    try:
        if file.seekable():
            file.seek(0)
        data = file.read()
    except AttributeError:  # something that has read alone
        data = file.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: cannot be read ({error})") from None
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ValueError(f"{name}: the file must be open in binary mode")
    return bytes(data)


def _read_path(path: str | bytes, name: str) -> bytes | mmap.mmap | RemoteBytes:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if is_url(path):
        return RemoteBytes(path)
    if path == STDIN:
        return _read_open(sys.stdin.buffer, "standard input") if sys.stdin else b""
    if os.path.isdir(path):
        raise ValueError(f"{name}: is a directory, not an audio file")
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # a pipe says that it has no bytes
                return file.read()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if status.st_size else b""
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: cannot be read ({error})") from None
