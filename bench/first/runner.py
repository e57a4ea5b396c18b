"""Runs a plan: a process for each step with a limit, a deadline for all, a line at once for each result."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.first.plan import Phase, PlanStep

PTXAS = "/usr/local/cuda/bin/ptxas"
LEAST = 0.5  # of a step's limit that must be left for it to begin


PLACES = {f"{Path(__file__).parents[2]}/": "", f"{sys.prefix}/": "", f"{sys.base_prefix}/": ""}


def _without_places(text: str) -> str:
    """Without the folders of this machine."""
    for place, name in PLACES.items():
        text = text.replace(place, name)
    return text


class Journal:
    """first.jsonl and first.log of a folder: whole lines, written at once, whatever thread says them."""

    def __init__(self, folder: Path, common: Mapping[str, object] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.common = folder / "first.jsonl", dict(common or {})
        self._lines = self.path.open("w", encoding="utf-8", buffering=1)
        self._log = (folder / "first.log").open("w", encoding="utf-8", buffering=1)
        self._lock, self._start = threading.Lock(), time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def say(self, record: Mapping[str, object]) -> None:
        with self._lock:
            line = {**record, **self.common, "at_s": round(self.elapsed(), 2)}
            self._lines.write(_without_places(json.dumps(line)) + "\n")

    def log(self, step: str, text: str) -> None:
        with self._lock:
            self._log.write(f"[{self.elapsed():7.2f} {step}] {_without_places(text.rstrip())[:2000]}\n")

    def close(self) -> None:
        self._lines.close()
        self._log.close()


class Runner:
    """Args:
    journal: where results go.
    total: seconds from the journal's beginning after which nothing runs any more.
    environment: of the processes.
    workers: processes at a time at most, on a machine smaller than the plan's; 0 for the plan's own.
    slow: what limits are multiplied by, for a rehearsal.
    child: the command that a step's words follow.
    """

    def __init__(
        self,
        journal: Journal,
        total: float,
        environment: Mapping[str, str] | None = None,
        workers: int = 0,
        slow: float = 1.0,
        child: Sequence[str] = (sys.executable, "-m", "bench.first.child"),
    ):
        self.journal, self.total, self.workers, self.slow, self.child = journal, total, workers, slow, tuple(child)
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}

    def run(self, phases: Sequence[Phase]) -> list[str]:
        """The names of the steps that were not done: too late, ended, or failed."""
        found: dict[str, bool] = {}

        def note(one: PlanStep, phase: Phase, over: threading.Event | None = None) -> None:
            found[one.name] = self.step(one, phase, over)

        for phase in phases:
            over = threading.Event()
            behind = [threading.Thread(target=note, args=(x, phase, over)) for x in phase.steps if x.background]
            for thread in behind:
                thread.start()
            with ThreadPoolExecutor(min(phase.workers, self.workers or phase.workers)) as pool:
                for future in [pool.submit(note, x, phase) for x in phase.steps if not x.background]:
                    future.result()
            over.set()
            for thread in behind:
                thread.join()
        return [name for name, done in found.items() if not done]

    def step(self, one: PlanStep, phase: Phase, over: threading.Event | None = None) -> bool:
        """Runs a process to its end or its limit; whether it came to its end."""
        common = {"step": one.name, "part": phase.part, "phase": phase.name}
        limit, left = one.limit * self.slow, self.total - self.journal.elapsed()
        if left < LEAST * limit:
            why = f"{left:.0f} s are left, and it may take {limit:.0f} s"
            self.journal.say({**common, "kind": "step", "status": "skipped", "why": why})
            return False
        limit = min(limit, left)
        environment = dict(self.environment)
        if one.ptxas:
            environment |= {"TRITON_PTXAS_PATH": PTXAS, "TRITON_CACHE_DIR": f"{environment['TRITON_CACHE_DIR']}-ptxas"}
        if one.compile:
            environment |= {"FIRST_COMPILE": "1"}
        began = time.monotonic()
        environment |= {"FIRST_LIMIT": f"{limit:.2f}", "FIRST_END": f"{began + limit:.2f}"}
        process = subprocess.Popen(
            [*self.child, *one.words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            env=environment, start_new_session=True,
        )  # fmt: skip
        said: list[str] = []
        errors: list[str] = []  # of a stream of its own, since an exception is no last word where threads read
        readers = [
            threading.Thread(target=self._read, args=(process.stdout, common, said), daemon=True),
            threading.Thread(target=self._read, args=(process.stderr, common, errors), daemon=True),
        ]
        for reader in readers:
            reader.start()
        late, end = False, began + limit
        while process.poll() is None:
            if (over is not None and over.is_set()) or time.monotonic() > end:
                late = over is None or not over.is_set()
                break
            time.sleep(0.05)
        stopped = process.poll() is None
        _end(process)
        for reader in readers:
            reader.join(5)
        code, took = process.returncode, round(time.monotonic() - began, 2)
        if late:
            status, why = "timed out", f"ended after {limit:.0f} s"
        elif stopped or code == 0:
            status, why = "done", ""
        elif code < 0:
            status, why = "crashed", f"ended by {signal.Signals(-code).name}"
        else:
            status, why = "failed", f"ended with {code}"
        if status in ("crashed", "failed") and (last := [*said, *errors][-1:]):
            why += f": {last[0][:300]}"
        self.journal.say({**common, "kind": "step", "status": status, "why": why, "took_s": took})
        return status == "done"

    def _read(self, stream, common: Mapping[str, object], said: list[str]) -> None:
        for line in stream:
            record = None
            if line.startswith("{"):
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
            if isinstance(record, dict):
                self.journal.say({**common, **record})
            elif line.strip():
                said.append(line.strip())
                del said[:-5]
                self.journal.log(str(common["step"]), line)


def _end(process: subprocess.Popen) -> None:
    """Ends what is left of a step's processes: its session is its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
