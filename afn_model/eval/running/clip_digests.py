"""Digests of recordings' bytes, kept in a file so that a run that goes on does not read them again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.recording import Audio, is_inside, load, measured_seconds, read_whole
from afn_model.audio.shards import is_member, split_path
from afn_model.audio.tables import split_cell
from afn_model.checks import said
from afn_model.files import append_row, appended_rows, fingerprint, fingerprint_of
from afn_model.storage import ahead

MISSING = "missing"


@dataclass(frozen=True)
class ClipDigest:
    """What is known of a recording.

    Args:
        path: of it.
        state: size and time of the file that it is in.
        sha256: of its bytes.
        seconds: of the whole recording; 0 where it cannot be read.
    """

    path: str
    state: str
    sha256: str
    seconds: float


class ClipDigests:
    """path -> SHA-256 of its bytes; ``MISSING`` where they cannot be read.

    Args:
        path: of the file that keeps them; what cannot be read in it is left out, and what cannot be kept is made again.
    """

    def __init__(self, path: Path):
        self.path, self.known = path, dict[str, ClipDigest]()
        self.problems: dict[str, str] = {}
        for row in appended_rows(path):
            with suppress(TypeError):
                found = ClipDigest(**row)
                self.known[found.path] = found

    def read(self, paths: Iterable[str], *, threads: int = 4) -> None:
        """Makes the digests of recordings that are new or have changed."""
        known = self.known
        todo = [path for path in dict.fromkeys(paths) if path not in known or known[path].state != state_of(path)]
        for path, found in ahead(self._digest, todo, threads):
            if found.sha256 == MISSING:
                known.setdefault(path, found)  # of a recording that has gone since, what it was
                continue
            known[path] = found
            with suppress(OSError):
                append_row(self.path, asdict(found))

    def __call__(self, path: str) -> str:
        return self._of(path).sha256

    def seconds(self, path: str, start: float | None = None, end: float | None = None) -> float:
        """Of a recording, or of the part of it between two times; 0 where it cannot be read."""
        whole = self._of(path).seconds
        return round(max(0.0, (whole if end is None else min(end, whole)) - (start or 0.0)), 3)

    def _of(self, path: str) -> ClipDigest:
        if path not in self.known:
            self.read([path])
        return self.known[path]

    def _digest(self, path: str) -> ClipDigest:
        state, seconds = state_of(path), 0.0
        try:
            found = fingerprint_of([read_whole(path)]) if is_inside(path) else fingerprint(Path(path))
        except (OSError, ValueError) as error:
            self.problems[path] = said(error)
            return ClipDigest(path, state, MISSING, seconds)
        with suppress(ValueError):  # which will be told when it is asked about
            seconds = _seconds(path)
        return ClipDigest(path, state, found, seconds)


def _seconds(path: str) -> float:
    try:
        return round(measured_seconds(Audio(path)), 3)
    except ValueError:  # a file that does not say how long it is
        return round(len(load(Audio(path))) / SAMPLE_RATE, 3)


def state_of(path: str) -> str:
    """Size and time of the file that a recording is in; "" where there is none."""
    if is_inside(path):
        path = (split_path if is_member(path) else split_cell)(path)[0]
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
