"""Fetches recordings: each a file ``recordings/DIGEST.suffix`` of the run, whole or not there.

What happened on the way (when, with which status, from which final address) is appended to ``retrievals.jsonl``, never
said in rows, which are the same however often a recording had to be fetched.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from afn_model import storage
from afn_model.checks import named, said, whole
from afn_model.curate import identity
from afn_model.curate.stage import Context, Dropped, Failed, Kept, NotReady, Outcome, Resources, Row, Stage
from afn_model.curate.stages.discover import SUFFIXES
from afn_model.files import sync

RECORDINGS, RETRIEVALS = "recordings", "retrievals.jsonl"
AT_ONCE = 4  # recordings of a batch that are waited for together


class TooManyBytes(ValueError):
    """More than is allowed."""


@dataclass(frozen=True)
class Fetch(Stage):
    """Brings recordings into the folder of the run.

    A recording that was fetched before is not fetched again while its file is there; where the address holds other
    bytes by then, the row has failed: nobody may take the one for the other.

    Args:
        folder: that relative addresses start from, itself relative to that of the plan.
        fetcher: ``module:function(url, path)``, which writes a file; it may return {"address": the final one, "status",
            "suffix": of the file's name}. What it raises has failed; ``retryable`` or ``status`` of the exception say
            whether another try may go better, and without these all may but a ValueError. Without a fetcher files are
            copied, and addresses in storage and on the web read as corpora are (``afn_model.storage``).
        link: hard links instead of copies, where the file system allows them.
        max_bytes: of a recording; larger ones are dropped.
    """

    name: ClassVar[str] = "fetch"
    reads: ClassVar[tuple[str, ...]] = ("url",)
    writes: ClassVar[tuple[str, ...]] = ("file", "source_id", "bytes")
    drops: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(batch=16, seconds=0.2)

    folder: str = "."
    fetcher: str = ""
    link: bool = False
    max_bytes: int = 8 << 30

    def __post_init__(self):
        whole(self.max_bytes, "max_bytes", 1, 1 << 50)
        if self.fetcher:
            named(self.fetcher, "fetcher")

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        if not self.fetcher and not (context.folder / self.folder).is_dir():
            raise NotReady(f"{self.folder}: no such folder of recordings")
        known = retrievals(context.out)
        known.update()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda row: self._one(row["url"], context, known), rows))

    def _one(self, url: str, context: Context, known: Retrievals) -> Outcome:
        out, base = context.out, context.folder / self.folder
        before = known.found.get(url)
        try:
            if before is not None and self._is_there(url, out, base, before):
                return _kept(before["file"], before["source_id"], before["bytes"])
            file, source_id, size, told = self._fetch(url, out, base)
        except TooManyBytes as error:
            return Dropped("too many bytes", str(error))
        except NotReady:
            raise
        except Exception as error:  # a fetcher may raise anything
            known.append({"url": url, "error": f"{type(error).__name__}: {said(error)}"})
            return Failed(_plain(error, base), may_pass(error))
        if before is not None and before["source_id"] != source_id:
            return _changed(source_id, before)
        known.append({"url": url, "file": file, "source_id": source_id, "bytes": size, **told})
        return _kept(file, source_id, size)

    def _is_there(self, url: str, out: Path, base: Path, before: Mapping[str, Any]) -> bool:
        """Whether the file is what was fetched, and an address on this machine still holds the same."""
        if digest_of(out / before["file"]) != before["source_id"]:
            return False
        return bool(self.fetcher) or storage.is_url(url) or digest_of(_local(url, base)) in (None, before["source_id"])

    def _fetch(self, url: str, out: Path, base: Path) -> tuple[str, str, int, dict[str, Any]]:
        folder = out / RECORDINGS
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{secrets.token_hex(4)}-fetched"
        try:
            told = self._write(url, temporary, base)
            size = temporary.stat().st_size
            self._check(size)
            source_id = digest_of(temporary)
            suffix = str(told.pop("suffix", "") or Path(storage.bare(url)).suffix).lower()
            file = f"{RECORDINGS}/{source_id}{suffix if suffix in SUFFIXES else ''}"
            sync(temporary)
            os.replace(temporary, out / file)
        finally:
            temporary.unlink(missing_ok=True)
        assert source_id is not None
        return file, source_id, size, told

    def _write(self, url: str, path: Path, base: Path) -> dict[str, Any]:
        if self.fetcher:
            told = named(self.fetcher, "fetcher")(url, path)
            if not path.is_file():
                raise ValueError("the fetcher has written no file")
            return {key: told[key] for key in ("address", "status", "suffix") if key in told} if told else {}
        if storage.is_url(url):
            self._check(storage.state(url).size)
            storage.download(url, path)
            return {"address": storage.shown(url)}
        source = _local(url, base)
        self._check(source.stat().st_size)
        if self.link:
            with suppress(OSError):
                os.link(source.resolve(), path)
                return {}
        shutil.copyfile(source, path)
        return {}

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise TooManyBytes(f"{size} of at most {self.max_bytes}")


class Retrievals:
    """The retrievals of a run, by address the last that went well; other processes append to the file as well."""

    def __init__(self, path: Path):
        self.path, self.read, self.found = path, 0, dict[str, dict[str, Any]]()

    def update(self) -> None:
        """Reads what has been appended."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.read += len(line)
                with suppress(ValueError, KeyError, TypeError):  # a torn line
                    told = json.loads(line)
                    if told["source_id"] and told["file"] and told["bytes"]:
                        self.found[told["url"]] = told

    def append(self, told: Mapping[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **told}, ensure_ascii=False, default=str)
        raw = line.encode("utf-8", "surrogatepass") + b"\n"
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = os.lseek(handle, 0, os.SEEK_END)
            if end and os.pread(handle, 1, end - 1) != b"\n":  # a killed run has left a torn line
                raw = b"\n" + raw
            os.write(handle, raw)
        finally:
            os.close(handle)


@cache
def retrievals(out: Path) -> Retrievals:
    """Those of a run; a process reads each line once."""
    return Retrievals(out / RETRIEVALS)


def digest_of(path: Path) -> str | None:
    """BLAKE3 of a file, None where there is none; it is mapped, not read into memory."""
    try:
        import blake3  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise NotReady("curation hashes with blake3: pip install 'afn-kernels[curate]'") from None
    try:
        return blake3.blake3().update_mmap(path).hexdigest()[: identity.DIGITS]
    except OSError:
        return None


def may_pass(error: Exception) -> bool:
    """Whether another try may go better."""
    told = getattr(error, "retryable", None)
    if isinstance(told, bool):
        return told
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in (408, 425, 429) or status >= 500
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return False
    return isinstance(error, storage.NoAnswerError) or not isinstance(error, ValueError)


def _local(url: str, base: Path) -> Path:
    plain = os.path.normpath(url)
    if os.path.isabs(plain) or plain.split(os.sep)[0] == "..":
        raise ValueError("an address on this machine must lie in the folder of recordings")
    return base / plain


def _plain(error: Exception, base: Path) -> str:
    """What an error says, without a path of this machine."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {said(error)}".replace(str(base.resolve()), "")


def _kept(file: str, source_id: str, size: int) -> Kept:
    return Kept({"file": file, "source_id": source_id, "bytes": size})


def _changed(source_id: str, before: Mapping[str, Any]) -> Failed:
    return Failed(
        f"its bytes have changed: {source_id}, but {before['source_id']} were fetched before; take its lines out of "
        f"{RETRIEVALS} to go on with these"
    )
