"""A file, here or in storage, as bytes to be sliced: of a long one only what is asked for is fetched."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from typing import overload

from afn_model.storage import is_url, read_first, read_range, state

BLOCK = 1 << 16
FIRST = 1 << 20  # bytes of a recording that are fetched first: most clips are no longer
AHEAD = 1 << 22  # bytes that are fetched at once, at most, where a file is read on and on
KEPT = 1 << 26  # bytes of blocks kept of a recording while it is read: some formats are read twice
KEPT_OPEN = 1 << 21  # and of a file that stays open


class RemoteBytes:
    """A file in storage, or a part of one, to be sliced like bytes: what is asked for is fetched by range and kept.

    Args:
        url: its address.
        begin, size: the part, in bytes; all of the file if ``size`` is None.
        total: bytes of the whole file, where the size of a part is given.
        first: bytes to fetch first, whole blocks; a file of fewer is fetched at once, without asking for its size.
        kept: most bytes to keep.
    """

    def __init__(
        self,
        url: str,
        begin: int = 0,
        size: int | None = None,
        total: int = 0,
        first: int = FIRST,
        kept: int = KEPT,
    ):
        self.url, self._begin, self._total, self._most = url, begin, total, kept
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._ahead = -1, BLOCK
        if size is None:
            head = read_first(url, first)
            self._size = self._total = len(head) if len(head) != first else state(url).size
            self._keep(0, head)
        else:
            self._size = size
            if size and size <= first:
                self._keep(0, read_range(url, begin, begin + size, total))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self[:]

    @overload
    def __getitem__(self, key: int) -> int: ...

    @overload
    def __getitem__(self, key: slice) -> bytes: ...

    def __getitem__(self, key: int | slice) -> int | bytes:
        if not isinstance(key, slice):
            number = key + self._size if key < 0 else key
            if not 0 <= number < self._size:
                raise IndexError(f"byte {key} of {self._size}")
            return self[number : number + 1][0]
        begin, end, step = key.indices(self._size)
        assert step == 1
        return self._read(begin, end) if begin < end else b""

    def find(self, what: bytes, start: int = 0, stop: int | None = None) -> int:
        """The first place of some bytes, -1 where they are not there."""
        stop = self._size if stop is None else min(stop, self._size)
        for begin in range(start, stop, AHEAD):
            at = self[begin : min(begin + AHEAD + len(what) - 1, stop)].find(what)
            if at >= 0:
                return begin + at
        return -1

    def _read(self, begin: int, end: int) -> bytes:
        first, last = begin // BLOCK, (end - 1) // BLOCK
        if end - begin > self._most // 2:
            return read_range(self.url, self._begin + begin, self._begin + end, self._total)
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if missing:
            self._fetch(missing[0], missing[-1] + 1)
        for number in range(first, last + 1):
            self._blocks.move_to_end(number)
        data = b"".join(self._blocks[number] for number in range(first, last + 1))
        while len(self._blocks) * BLOCK > self._most:
            self._blocks.popitem(last=False)
        return data[begin - first * BLOCK : end - first * BLOCK]

    def _fetch(self, first: int, stop: int) -> None:
        """Blocks ``first`` to ``stop``, and further ones where the file is read on and on."""
        self._ahead = min(2 * self._ahead, AHEAD, self._most // 2) if first == self._next else BLOCK
        stop = max(stop, first + self._ahead // BLOCK)
        begin, end = first * BLOCK, min(stop * BLOCK, self._size)
        self._keep(first, read_range(self.url, self._begin + begin, self._begin + end, self._total))
        self._next = stop

    def _keep(self, first: int, data: bytes) -> None:
        for number, at in enumerate(range(0, len(data), BLOCK), first):
            self._blocks[number] = data[at : at + BLOCK]
        self._next = first + -(-len(data) // BLOCK)


class LocalBytes:
    """A local file to be sliced like bytes, read by position: forked workers share nothing but its handle."""

    def __init__(self, path: str):
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        self._size = os.fstat(self._file).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> bytes:
        begin, end, _ = key.indices(self._size)
        return os.pread(self._file, end - begin, begin) if begin < end else b""

    def __del__(self):
        if "_file" in self.__dict__:
            os.close(self._file)


def open_bytes(path: str) -> LocalBytes | RemoteBytes:
    """A file, here or in storage, to be sliced; nothing is fetched of it yet."""
    if not is_url(path):
        return LocalBytes(path)
    size = state(path).size
    return RemoteBytes(path, 0, size, size, first=0, kept=KEPT_OPEN)


class BytesFile(io.RawIOBase):
    """What can be sliced as a file to read from."""

    def __init__(self, data: LocalBytes | RemoteBytes):
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, (0, self._at, len(self._data))[whence] + offset)
        return self._at

    def readinto(self, buffer) -> int:
        data = self._data[self._at : self._at + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
