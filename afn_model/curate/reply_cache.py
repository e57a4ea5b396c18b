"""What annotators have answered, kept as it came: OUT/cache/ANNOTATOR/SHARD.sqlite, a row for each request.

A reply is in the file before the next request is sent. Whether it is of use is judged when it is read.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

_TABLE = "CREATE TABLE IF NOT EXISTS replies (id TEXT PRIMARY KEY, subject TEXT NOT NULL, record TEXT NOT NULL)"
CACHE = "cache"  # folder of a run
_SECONDS = 60.0  # to wait for another process
Record = dict[str, Any]  # {"replies": [...], "error": {"said", "retryable"} or None, "attempts": count}


class ReplyCache:
    """Records of one annotator and shard; threads may share it.

    Args:
        path: of the file.

    Raises:
        ValueError: another kind of file is there.
    """

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = sqlite3.connect(path, timeout=_SECONDS, check_same_thread=False, isolation_level=None)
        try:
            self.file.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: {error}; move the file away to ask everything anew") from None

    def get(self, result_id: str) -> Record | None:
        """A record: from this file, or from one that the same annotator has of another division into shards."""
        with self.lock:
            found = _read(self.file, result_id)
        return found if found is not None else self._elsewhere(result_id)

    def put(self, result_id: str, subject: str, record: Record) -> None:
        told = json.dumps(record, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self.lock:
            self.file.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (result_id, subject, told.decode(errors="replace"))
            )

    def close(self) -> None:
        self.file.close()

    def _elsewhere(self, result_id: str) -> Record | None:
        division = self.path.name.partition("-of-")[2]
        for path in sorted(self.path.parent.glob("*.sqlite")):
            if path != self.path and path.name.partition("-of-")[2] != division:
                with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
                    found = _read(file, result_id)
                    if found is not None:
                        return found
        return None


def forget(out: Path, ids: set[str]) -> int:
    """Deletes the replies of every annotator that are kept by one of these ids or whose subject is one; how many."""
    gone = 0
    for path in sorted((out / CACHE).glob("*/*.sqlite")):
        cache = ReplyCache(path)
        with closing(cache.file) as file:
            file.execute("PRAGMA secure_delete = ON")
            kept = file.execute("SELECT id, subject FROM replies").fetchall()
            going = [(one,) for one, subject in kept if one in ids or subject in ids]
            file.executemany("DELETE FROM replies WHERE id = ?", going)
            gone += len(going)
    return gone


def _read(file: sqlite3.Connection, result_id: str) -> Record | None:
    row = file.execute("SELECT record FROM replies WHERE id = ?", (result_id,)).fetchone()
    return None if row is None else json.loads(row[0])
