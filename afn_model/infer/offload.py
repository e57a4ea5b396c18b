"""Pages of the key-value cache outside of the device: in host memory, and behind it in a folder.

Pages that the pool gives up, and those of sequences that have to wait, are saved here and loaded again instead of
being computed again. What is least recently used leaves memory for the folder, and the folder for good; both are
bounded in bytes. A page is asked for by key and content (``pages.page_key``), and comes back with the bits it had.

A file is one page: SHA-256 of all that follows, the length of a JSON object (4 bytes, little endian), the object with
folder, key, content, dtype and shape, and the values. One that is damaged, or of another folder, is a miss and deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from afn_model.files import fingerprint_of

WORKERS = 4  # threads that hash, read and write files
WRITING = 8  # pages on their way to the folder, at most
STALE = 3600.0  # seconds after which nobody is writing an incomplete file any longer
_BEGIN, _ALIGN = 32 + 4, 64  # bytes before the JSON object; what the values' place is a multiple of


def page_folder(root: Path, **facts: object) -> Path:
    """The folder below ``root`` for pages of one model, named by all that they depend on: a fingerprint of the
    weights, the reading of RoTE, dtype and tokens of a page, and the kind of GPU where bits must be equal."""
    text = json.dumps({name: str(value) for name, value in facts.items()}, sort_keys=True)
    return Path(root) / f"pages-{fingerprint_of([text])[:32]}"


@dataclass(eq=False)
class SavedPage:
    """A page in host memory. A GPU may still be copying it there, until ``copied``."""

    content: bytes
    payload: Tensor
    copied: torch.Event | torch.cuda.Event | None = None

    def complete(self) -> Tensor:
        if self.copied is not None:
            self.copied.synchronize()
        return self.payload


class HostPages:
    """Pages in host memory and in a folder. One thread calls; for another model or other weights another one is made.

    Args:
        capacity: bytes of host memory. Up to ``WRITING`` pages beyond it are on their way to the folder.
        folder: for what does not fit there any longer (``page_folder``). It survives a restart, and processes may share
            it. Where it cannot be written to, one warning says so, and it is only read from then on.
        disk_capacity: bytes of the folder's files.
        device: where pages come from. Those of a GPU are copied on a stream of their own into pinned memory.

    Raises:
        ValueError: a capacity below zero, or a folder without a capacity or the other way round.
    """

    def __init__(self, capacity: int, folder: Path | None = None, disk_capacity: int = 0, *, device: str = "cpu"):
        if capacity < 0 or disk_capacity < 0 or (folder is None) != (disk_capacity == 0):
            raise ValueError(f"capacity {capacity}, folder {folder}, disk_capacity {disk_capacity}: bytes of both")
        self.capacity, self.device, self.bytes = capacity, torch.device(device), 0
        self._memory: OrderedDict[bytes, SavedPage] = OrderedDict()  # the least recently used first
        gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if gpu else None
        self.disk = DiskPages(None if folder is None else Path(folder), disk_capacity, gpu)

    def __contains__(self, key: bytes) -> bool:
        """Whether a page is here; its content is compared when it is loaded."""
        return key in self._memory or key in self.disk

    def save(self, key: bytes, content: bytes, payload: Tensor, *, ahead: bool = False) -> None:
        """Keeps a copy of a page.

        Args:
            payload: [layers, 2, PAGE, KV heads, head_dim], any dtype. It may be written to at once.
            ahead: on a GPU, that goes for after ``fence`` only, and the copy is made beside what is computed.
        """
        known = self._memory.get(key)
        if known is not None and known.content == content:
            self._memory.move_to_end(key)
        else:
            self._keep(key, self._copy(content, payload.detach(), ahead))

    def load(self, key: bytes, content: bytes) -> Tensor | None:
        """A page on the CPU, pinned for a GPU, not to be written to; None where it is not here."""
        page = self._memory.get(key)
        if page is not None:
            self._memory.move_to_end(key)
        elif (page := self.disk.load(key, content)) is not None:
            self._keep(key, page)
        return page.complete() if page is not None and page.content == content else None

    def load_run(self, pages: list[tuple[bytes, bytes]]) -> list[Tensor]:
        """Of a chain of pages, keys and contents, those before the first that is not here; files are read together."""
        self.disk.read_ahead(key for key, _ in pages if key not in self._memory)
        found = []
        for key, content in pages:
            if (payload := self.load(key, content)) is None:
                break
            found.append(payload)
        for key, _ in reversed(pages[: len(found)]):  # the end of a chain leaves first
            if key in self._memory:
                self._memory.move_to_end(key)
        self.disk.read_ahead(())
        return found

    def fence(self) -> None:
        """What the current stream does from now on comes after all copies."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def close(self, keep: bool = True) -> None:
        """Ends the threads; with ``keep``, what is in memory is written to the folder before."""
        for key, page in self._memory.items() if keep else ():
            self.disk.save(key, page)
        self.disk.close()
        self._memory.clear()
        self.bytes = 0

    def _copy(self, content: bytes, payload: Tensor, ahead: bool) -> SavedPage:
        copy = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=self._stream is not None)
        if self._stream is None:
            return SavedPage(content, copy.copy_(payload))
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            copy.copy_(payload, non_blocking=True)
        payload.record_stream(self._stream)
        if not ahead:
            self.fence()
        return SavedPage(content, copy, self._stream.record_event())

    def _keep(self, key: bytes, page: SavedPage) -> None:
        former = self._memory.pop(key, None)
        self.bytes += page.payload.nbytes - (0 if former is None else former.payload.nbytes)
        self._memory[key] = page
        while self.bytes > self.capacity:
            oldest, leaving = self._memory.popitem(last=False)
            self.bytes -= leaving.payload.nbytes
            self.disk.save(oldest, leaving)


class DiskPages:
    """Pages in the files of a folder, or none, behind those in memory. Its threads only hash, read and write."""

    def __init__(self, folder: Path | None, capacity: int, pin: bool):
        self.folder, self.capacity, self.pin, self.bytes, self.broken = folder or Path(), capacity, pin, 0, False
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # least recently used first, with what is being written
        self._writing: dict[bytes, tuple[SavedPage, Future[OSError | None]]] = {}
        self._reading: dict[bytes, Future[SavedPage | None]] = {}
        self._threads = ThreadPoolExecutor(WORKERS, "pages")
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                self._find_files()
        except OSError as error:
            self._break(error)

    def __contains__(self, key: bytes) -> bool:
        return key in self._sizes

    def save(self, key: bytes, page: SavedPage) -> None:
        """Begins to write a page, unless there is one with its key."""
        head = _head(self.folder.name, key, page)
        size = 32 + len(head) + page.payload.nbytes
        if key in self._sizes or size > self.capacity:
            return
        self._settle(WRITING - 1)
        if self.broken:
            return
        self._shrink(self.capacity - size)
        self._sizes[key] = size
        self.bytes += size
        self._writing[key] = page, self._threads.submit(_write, self._path(key), head, page)

    def load(self, key: bytes, content: bytes) -> SavedPage | None:
        """A page; None where there is none with this content, and its file, if it is another one, is deleted."""
        self._settle(WRITING)
        if key not in self._sizes:
            return None
        self._sizes.move_to_end(key)
        if key in self._writing:
            page = self._writing[key][0]
        else:
            page = (self._reading.pop(key, None) or self._begin(key)).result()
        if page is None or page.content != content:
            self._remove(key)
            return None
        return page

    def read_ahead(self, keys: Iterable[bytes]) -> None:
        """Begins to read pages that will be loaded, and drops those of the last time."""
        there = [key for key in keys if key in self._sizes and key not in self._writing]
        self._reading = {key: self._begin(key) for key in there}

    def close(self) -> None:
        self._settle(0)
        self._threads.shutdown()

    def _begin(self, key: bytes) -> Future[SavedPage | None]:
        return self._threads.submit(_read, self._path(key), key, self._sizes[key], self.pin)

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()}.page"

    def _find_files(self) -> None:
        found = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process may delete it
                state = file.lstat()
                if re.fullmatch(r"([0-9a-f]{2})+\.page", file.name):
                    found.append((state.st_mtime_ns, file.stem, state.st_size))
                elif re.fullmatch(r"\.[0-9a-f]{8}-[0-9a-f]+\.page", file.name) and time.time() > state.st_mtime + STALE:
                    file.unlink()
        self._sizes.update((bytes.fromhex(key), size) for _, key, size in sorted(found))
        self.bytes = sum(self._sizes.values())
        self._shrink(self.capacity)

    def _shrink(self, most: int) -> None:
        while self.bytes > most:
            self._remove(next(iter(self._sizes)))

    def _remove(self, key: bytes) -> None:
        if key in self._writing:
            self._settle(0)
        self.bytes -= self._sizes.pop(key, 0)
        with suppress(OSError):
            self._path(key).unlink()

    def _settle(self, most: int) -> None:
        """Takes note of what has been written; waits until at most so many pages are being written."""
        for key, (_, future) in list(self._writing.items()):
            if len(self._writing) > most or future.done():
                error = future.result()
                del self._writing[key]
                if error is not None:
                    self.bytes -= self._sizes.pop(key)
                    self._break(error)

    def _break(self, error: OSError) -> None:
        if not self.broken:
            warnings.warn(f"{self.folder}: no more pages are written to it: {error.strerror or error}", stacklevel=2)
        self.broken = True


def _head(folder: str, key: bytes, page: SavedPage) -> bytes:
    """What stands in a file between digest and values, so long that these are aligned."""
    dtype, shape = str(page.payload.dtype).removeprefix("torch."), list(page.payload.shape)
    facts = {"folder": folder, "key": key.hex(), "content": page.content.hex(), "dtype": dtype, "shape": shape}
    text = json.dumps(facts).encode()
    text += b" " * (-(_BEGIN + len(text)) % _ALIGN)
    return len(text).to_bytes(4, "little") + text


def _write(path: Path, head: bytes, page: SavedPage) -> OSError | None:
    """Writes a file that is complete or not there. It need not be on the disk yet: the checksum says whether it is."""
    values = page.complete().reshape(-1).view(torch.uint8).numpy().data
    digest = hashlib.sha256(head)
    digest.update(values)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        with open(temporary, "xb") as file:
            for part in (digest.digest(), head, values):
                file.write(part)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        return error
    return None


def _read(path: Path, key: bytes, size: int, pin: bool) -> SavedPage | None:
    """The page of a file, which becomes the last used one; None where it is not what was written for this key."""
    try:
        with open(path, "rb") as file:
            if size < _BEGIN or os.fstat(file.fileno()).st_size != size:
                return None
            data = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
            view = data.numpy().data
            if file.readinto(view) != size or hashlib.sha256(view[32:]).digest() != view[:32]:
                return None
        os.utime(path)
        end = _BEGIN + int.from_bytes(view[32:_BEGIN], "little")
        facts = json.loads(bytes(view[_BEGIN:end]))
        payload = data[end:].view(getattr(torch, facts["dtype"])).view(facts["shape"])
        page = SavedPage(bytes.fromhex(facts["content"]), payload)
        return page if (facts["folder"], facts["key"]) == (path.parent.name, key.hex()) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None  # no file, or one that others have made
