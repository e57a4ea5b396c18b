"""Copies of JSON Lines files that lie in storage: kept in the folder of their index, and no more than fits.

A copy is made when a corpus is indexed, and again where it has had to go. All copies of a folder of indexes together
have at most ``AFN_CACHE_GB`` (20) · 10⁹ bytes: those that were not used for longest go first. Indexes stay.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from afn_model.files import atomic_path, fingerprint
from afn_model.storage import FileState, download, forget, state

RECORDS = "records.jsonl"
COPY = "copy"  # an empty file beside a copy: what has none cannot be fetched again
DEFAULT = 20.0


def most_bytes() -> float:
    """What all copies together may have.

    Raises:
        ValueError: ``AFN_CACHE_GB`` is no number above 0.
    """
    given = os.environ.get("AFN_CACHE_GB") or str(DEFAULT)
    try:
        most = float(given)
    except ValueError:
        most = 0.0
    if not most > 0:
        raise ValueError(f"AFN_CACHE_GB is {given!r}, not a number above 0")
    return most * 1e9


def fetch(url: str, copy: Path, known: FileState | None = None, content: str = "") -> FileState:
    """Makes a copy where there is none of this state of a file; returns the state.

    Args:
        url: of the file.
        copy: where it belongs.
        known: the state that ``copy`` is of.
        content: fingerprint that a new copy must have; any if "".

    Raises:
        ValueError: no such file, no access, a file larger than all copies may be, or one that has changed.
    """
    forget()
    now = state(url)
    if now.size > most_bytes():
        raise ValueError(
            f"{url}: {now.size / 1e9:.1f} GB, but AFN_CACHE_GB lets copies have {most_bytes() / 1e9:g}: raise it"
        )
    if known is not None and now == known and copy.is_file() and copy.stat().st_size == now.size:
        with contextlib.suppress(OSError):
            os.utime(copy)
        return now
    changed = f"{url}: it has changed; index it again with `afn data index {url}`"
    if known is not None and now.size != known.size:
        raise ValueError(changed)
    try:
        with atomic_path(copy) as temporary:
            download(url, temporary)
            if content and fingerprint(temporary) != content:
                raise ValueError(changed)
        copy.with_name(COPY).touch()
    except OSError as error:
        raise ValueError(f"{url}: no copy of it can be written to {copy.parent} ({error.strerror})") from None
    return now


def make_room(index: Path) -> None:
    """Removes copies beside an index, the one that was not used for longest first, until all fit; never its own."""
    found = []
    for mark in index.parent.glob(f"*/{COPY}"):
        copy = mark.with_name(RECORDS)
        with contextlib.suppress(OSError):
            status = copy.stat()
            found.append((mark.parent != index, status.st_mtime_ns, status.st_size, copy))
    total, most = sum(size for _, _, size, _ in found), most_bytes()
    for other, _, size, copy in sorted(found, key=lambda one: one[1]):
        if other and total > most:
            with contextlib.suppress(OSError):
                copy.unlink()
                total -= size
