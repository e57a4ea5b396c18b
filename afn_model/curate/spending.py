"""What stages spend: calls, tokens and seconds of work, a line for each batch, and the budgets that end a run."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from afn_model.checks import number

KINDS = ("calls", "tokens", "seconds")


class StopRun(Exception):
    """The run ends here, cleanly: a budget is spent. What is done is kept."""


class Spending:
    """What has been spent on a stage, added up over its workers and their threads in one file that only grows.

    Args:
        path: of the file; None where nobody else counts.
        since: where in it this run began; what was spent before is not counted.
        most: {"calls", "tokens", "seconds": what this run may spend}.
    """

    def __init__(self, path: Path | None = None, since: int = 0, most: Mapping[str, float] | None = None):
        self.path, self.read, self.most = path, since, dict(most or {})
        self.lock = Lock()
        self.total: dict[str, float] = dict.fromkeys(("rows", *KINDS), 0.0)

    def add(self, *, rows: int = 0, calls: int = 0, tokens: int = 0, seconds: float = 0.0) -> None:
        """Counts what was spent, and reads what others have spent."""
        told = {"rows": rows, "calls": calls, "tokens": tokens, "seconds": round(seconds, 3)}
        raw = b"\n" + json.dumps({name: value for name, value in told.items() if value}).encode()
        if self.path is None:
            return self._count(raw)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
                os.write(handle, raw)
                end = os.lseek(handle, 0, os.SEEK_END)
                grown = os.pread(handle, max(end - self.read, 0), self.read)
            finally:
                os.close(handle)
            self.read = end
            return self._count(grown)

    def check(self) -> None:
        """
        Raises:
            StopRun: a budget is spent.
        """
        for name, most in self.most.items():
            if self.total[name] >= most:
                raise StopRun(f"{name}: {self.total[name]:,.0f} of {most:,.0f}")

    def look(self) -> Spending:
        """Reads what is there."""
        if self.path is None:
            return self
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.read)
            grown = file.read()
            self.read += len(grown)
            self._count(grown)
        return self

    def _count(self, raw: bytes) -> None:
        for line in raw.splitlines():
            with suppress(ValueError, AttributeError, KeyError, TypeError):  # torn
                for name, value in json.loads(line).items():
                    self.total[name] += value


def check_budgets(budgets: Any, stages: list[str]) -> dict[str, dict[str, float]]:
    """Budgets as a plan gives them: {stage: {kind: most}}.

    Raises:
        ValueError: an unknown stage or kind, or no number.
    """
    found: dict[str, dict[str, float]] = {}
    for stage, given in budgets.items() if isinstance(budgets, dict) else [(budgets, None)] if budgets else []:
        if stage not in stages or not isinstance(given, dict) or set(given) - set(KINDS):
            raise ValueError(f"budgets: {stage}: expected a stage of the plan with {', '.join(KINDS)}")
        found[stage] = {kind: number(most, f"budgets: {stage}: {kind}", above=-1e-9) for kind, most in given.items()}
    return found
