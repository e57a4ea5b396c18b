"""Outcomes on disk: a file for each stage and shard, whole or not there, with a manifest that is written last.

stages/NAME-KEY/SHARD.jsonl holds a line for each row, sorted by id: {"id", "of", and "fields", "dropped" or "failed"}.
"of" is the digest of what the stage read of the row. While a shard is worked on its lines are appended to SHARD.part, a
checkpoint for each batch; a line whose row reads the same by now is not made again. The manifest has the hash and the
counts of the file, and "inputs", the hashes of the files that its rows came from. Nothing depends on the order of work,
on workers or on time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from afn_model.curate.stage import Dropped, Kept, Outcome
from afn_model.files import atomic_path, fingerprint, write_json

MANIFEST = ".manifest.json"


class ShardOutcomes:
    """The outcomes of a stage for a shard.

    Args:
        folder: of the stage.
        shard: its name.
    """

    def __init__(self, folder: Path, shard: str):
        self.path, self.part = folder / f"{shard}.jsonl", folder / f"{shard}.part"
        self.manifest_path = folder / f"{shard}{MANIFEST}"

    def claims(self) -> dict[str, Any] | None:
        """What the manifest says; None where there is none."""
        try:
            found = json.loads(self.manifest_path.read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and {"sha256", "rows", "inputs", "retryable"} <= set(found) else None

    def manifest(self) -> dict[str, Any] | None:
        """What was committed; None where nothing was, or where the file is not what the manifest says."""
        found = self.claims()
        return found if found is not None and self._digest() == found["sha256"] else None

    def lines(self) -> Iterator[dict[str, Any]]:
        """The committed lines, sorted by id.

        Raises:
            ValueError: nothing is committed, or the file is not what the manifest says.
        """
        if self.manifest() is None:
            raise ValueError(f"{self.path}: not committed, or not what its manifest says; run the plan again")
        with self.path.open("rb") as file:
            yield from map(json.loads, file)

    def known(self) -> dict[str, dict[str, Any]]:
        """Lines that are there, by id: committed ones, those of a commit that was stopped before its manifest, and
        checkpoints. Torn lines and files that are not what was committed are none."""
        marks, found = set[str](), dict[str, dict[str, Any]]()
        for line in _read(self.part):
            if isinstance(line.get("commit"), str):
                marks.add(line["commit"])
            elif {"id", "of"} < set(line):
                found[line["id"]] = line
        if self.manifest() is not None or (marks and self._digest() in marks):
            found = {line["id"]: line for line in _read(self.path)} | found
        return found

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        """A checkpoint."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        raw = b"".join(written(line) for line in lines)
        handle = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = os.lseek(handle, 0, os.SEEK_END)
            if end and os.pread(handle, 1, end - 1) != b"\n":  # a killed run has left a torn line
                raw = b"\n" + raw
            while raw:
                raw = raw[os.write(handle, raw) :]
        finally:
            os.close(handle)

    def commit(self, lines: Iterable[dict[str, Any]], **facts: Any) -> dict[str, Any]:
        """Writes all lines, then the manifest; then the checkpoints may go.

        Args:
            lines: one for each row, in any order.
            facts: for the manifest.

        Raises:
            ValueError: two lines of one row.
        """
        found = sorted(lines, key=lambda line: line["id"])
        for one, other in pairwise(found):
            if one["id"] == other["id"]:
                raise ValueError(f"{self.path}: two outcomes of one row, {one['id']}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with atomic_path(self.path) as path:
            with path.open("wb") as file:
                for raw in map(written, found):
                    digest.update(raw)
                    size += file.write(raw)
            self.append([{"commit": digest.hexdigest()}])  # between the two names a reader knows the file by this
        told = {"sha256": digest.hexdigest(), "bytes": size, **counts(found), **facts}
        write_json(self.manifest_path, told)
        self.part.unlink(missing_ok=True)
        return told

    def _digest(self) -> str | None:
        try:
            return fingerprint(self.path)
        except FileNotFoundError:
            return None


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that are whole."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        for raw in file:
            with suppress(ValueError):
                line = json.loads(raw)
                if isinstance(line, dict):
                    yield line


def line_of(row_id: str, of: str, outcome: Outcome) -> dict[str, Any]:
    """The line of an outcome."""
    line: dict[str, Any] = {"id": row_id, "of": of}
    if isinstance(outcome, Kept):
        line["fields"] = dict(outcome.fields)
        if outcome.tally:
            line["tally"] = dict(outcome.tally)
    elif isinstance(outcome, Dropped):
        line["dropped"] = {"reason": outcome.reason, "detail": outcome.detail}
    else:
        line["failed"] = {"error": outcome.error, "retryable": outcome.retryable}
    return line


def counts(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """{"rows", "kept", "dropped": by reason, "failed", "retryable": of those, "tally"}; rows = kept + dropped + failed.

    Raises:
        ValueError: a row has no outcome, or two.
    """
    rows = kept = failed = retryable = 0
    dropped, tally = Counter[str](), Counter[str]()
    for line in lines:
        rows += 1
        kept += "fields" in line
        failed += "failed" in line
        retryable += is_retryable(line)
        if "dropped" in line:
            dropped[line["dropped"]["reason"]] += 1
        tally.update(line.get("tally") or {})
    if rows != kept + failed + sum(dropped.values()):
        raise ValueError(f"{rows} rows have {kept} + {sum(dropped.values())} + {failed} outcomes")
    found = {"rows": rows, "kept": kept, "dropped": dict(sorted(dropped.items())), "failed": failed}
    return found | {"retryable": retryable, "tally": dict(sorted(tally.items()))}


def written(line: dict[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def is_retryable(line: dict[str, Any]) -> bool:
    return bool(line.get("failed", {}).get("retryable"))
