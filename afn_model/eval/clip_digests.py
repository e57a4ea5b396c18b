"""Digests of recordings' bytes, kept in a file so that a run that goes on does not read them again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from afn_model.audio.recording import is_inside, read_whole
from afn_model.checks import said
from afn_model.files import fingerprint, fingerprint_of

MISSING = "missing"


class ClipDigests:
    """path -> SHA-256 of its bytes; ``MISSING`` where they cannot be read.

    Args:
        path: of the file that keeps them; what cannot be read in it is left out.
    """

    def __init__(self, path: Path):
        self.path, self.known = path, dict[str, tuple[str, str]]()
        self.problems: dict[str, str] = {}
        if path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                    self.known[row["path"]] = (row["state"], row["sha256"])
                except (ValueError, KeyError, TypeError):
                    continue

    def read(self, paths: Iterable[str], *, threads: int = 4) -> None:
        """Makes the digests of recordings that are new or have changed."""
        todo = [path for path in dict.fromkeys(paths) if self.known.get(path, ("", ""))[0] != state_of(path)]
        if not todo:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(threads) as pool, self.path.open("a", encoding="utf-8") as file:
            for path, (state, found) in zip(todo, pool.map(self._digest, todo), strict=True):
                if found != MISSING:
                    self.known[path] = state, found
                    file.write(json.dumps({"path": path, "state": state, "sha256": found}) + "\n")

    def __call__(self, path: str) -> str:
        """The digest; of a recording that has gone since, what it was."""
        if path not in self.known:
            self.read([path])
        return self.known.get(path, ("", MISSING))[1]

    def _digest(self, path: str) -> tuple[str, str]:
        state = state_of(path)
        try:
            return state, fingerprint_of([read_whole(path)]) if is_inside(path) else fingerprint(Path(path))
        except (OSError, ValueError) as error:
            self.problems[path] = said(error)
            return state, MISSING


def state_of(path: str) -> str:
    """Size and time of the file that a recording is in; "" where there is none."""
    file = path.split("#")[0] if is_inside(path) else path
    try:
        found = os.stat(file)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
