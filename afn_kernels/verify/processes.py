"""Runs each op's checks in a process of its own: what a GPU does not survive ends one process, not the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import torch

from afn_kernels.verify.check import Check
from afn_kernels.verify.run import Row, selected

LIMIT = 120.0  # seconds for one check, compilation included
BASE = 2 * 2**30  # device bytes of a process beside its tensors: CUDA's context, compiled code, what kernels use
MODULE = "afn_kernels.verify"


def rows(
    size: str,
    device: torch.device,
    *,
    ops: Container[str] | None = None,
    impls: Sequence[str] | None = None,
    seed: int = 0,
    time_them: bool = True,
    limit: float = LIMIT,
    workers: int = 0,
) -> Iterator[Row]:
    """As ``run.rows``: first every op's results, several processes at once, then all times in one process by itself.

    Args:
        limit: seconds between two rows of a process, after which it is ended and its check counts as failed.
        workers: processes at once; 0 chooses, as many as cores and memory allow.
    """
    names = list(dict.fromkeys(check.op for _, check in selected(size, ops)))
    options = [
        "--size",
        size,
        "--device",
        str(device),
        "--seed",
        str(seed),
        "--json",
        "--announce",
        "--here",
        "--no-file",
    ]
    options += ["--impl", ",".join(impls)] if impls is not None else []
    room, failed = Room(_memory(device)), set()
    queue: SimpleQueue[Row | None] = SimpleQueue()
    stop = threading.Event()

    def of_op(op: str) -> None:
        own = selected(size, {op})
        with room.taken(BASE + max(check.need() for _, check in own)):
            for row in survive(own, [*options, "--ops", op, "--no-time"], limit, (), stop):
                queue.put(row)

    with ThreadPoolExecutor(workers or max(1, min(8, (os.cpu_count() or 2) // 2))) as pool:
        futures = [pool.submit(of_op, op) for op in names]
        for future in futures:
            future.add_done_callback(lambda _: queue.put(None))
        try:
            for _ in names:
                while (row := queue.get()) is not None:
                    if row["status"] == "failed":
                        failed.add(f"{row['op']}:{row['impl']}")
                    yield row
        finally:  # whoever asked may have had enough
            stop.set()
        for future in futures:
            future.result()
    if time_them:
        own = [(number, check) for number, check in selected(size, ops) if check.timed]
        arguments = [*options, "--ops", ",".join(names), "--only-time"]
        yield from survive(own, arguments, limit, sorted(failed), threading.Event())


def survive(
    own: Sequence[tuple[int, Check]], arguments: Sequence[str], limit: float, skip: Sequence[str], stop: threading.Event
) -> Iterator[Row]:
    """The rows of a process, and of another one from there on where one ends before its time.

    Args:
        own: the checks and their numbers.
        arguments: of ``python -m afn_kernels.verify``.
        limit: seconds between two rows.
        skip: "op:implementation" that are not called. What ended a process is not called again.
        stop: set when nobody wants more rows.
    """
    checks, size = dict(own), arguments[arguments.index("--size") + 1]
    start, seen, skipped, died = min(checks, default=0), set(), list(skip), set()
    while start <= max(checks, default=-1) and not stop.is_set():
        begun, why = {"number": start, "impl": ""}, ""
        more = ["--start", str(start), *(["--skip", ",".join(skipped)] if skipped else [])]
        for found in lines([*arguments, *more], limit, stop):
            if "ended" in found:
                why = found["ended"]
            elif found["status"] == "begun":
                begun = found
            else:
                begun = {"number": found["number"], "impl": found["impl"], "over": True}
                if (identity := (found["number"], found["impl"], found["status"])) not in seen:
                    seen.add(identity)
                    yield found
        if not why or stop.is_set():
            return
        number, impl = begun["number"], begun["impl"]
        one, over = checks.get(number), "over" in begun
        if over and (number, impl) not in died:  # between two checks: nobody is to blame yet
            died.add((number, impl))
            start = number
            continue
        if one is not None:
            blamed = impl if not over else ""
            status = "failed" if blamed else "skipped"
            common = {"op": one.op, "check": one.name, "size": size, "number": number, "dtype": ""}
            seen.add((number, blamed, status))
            yield common | {"impl": blamed, "status": status, "reason": f"after {impl}: {why}" if over else why}
        if one is not None and impl and not over and f"{one.op}:{impl}" not in skipped:
            skipped.append(f"{one.op}:{impl}")
            start = number
        else:
            start = min((x for x in checks if x > number), default=number + 1)


def lines(arguments: Sequence[str], limit: float, stop: threading.Event) -> Iterator[dict[str, Any]]:
    """The JSON lines of ``python -m afn_kernels.verify``, then {"ended": why, or "" where it came to its end}.

    It says so itself at its end: an exception that nobody caught ends a process with the same code as a failed check.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else deterministic mode refuses matrix products
    command = [sys.executable, "-m", MODULE, *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        over = False
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        watch = Watch(process, limit, stop)
        try:
            for line in process.stdout or ():
                watch.seen()
                found = _parsed(line)
                if found.get("status") == "over":
                    over = True
                elif found:
                    yield found
            code = process.wait()
        finally:
            watch.stop()
        if over and code in (0, 1):
            yield {"ended": ""}
            return
        errors.seek(0)
        said = [line.strip() for line in errors.read().splitlines() if line.strip()]
        why = f"no answer in {limit:.0f} s" if watch.late else _ended(code)
        yield {"ended": f"{why}{f': {said[-1][:300]}' if said and not watch.late else ''}"}


def _parsed(line: str) -> dict[str, Any]:
    """A line's row; none where somebody else has written there, or a process died within a line."""
    if line.startswith("{"):
        with suppress(ValueError):
            found = json.loads(line)
            return found if isinstance(found, dict) else {}
    return {}


def _ended(code: int) -> str:
    if code == LOST:
        return "CUDA lost its context"
    return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"


LOST = 3  # exit code of a process whose GPU context is lost


class Watch:
    """Ends a process that has said nothing for too long, or whose rows nobody wants any more."""

    def __init__(self, process: subprocess.Popen, limit: float, stop: threading.Event):
        self.process, self.limit, self.unwanted, self.late = process, limit, stop, False
        self._last, self._stopped = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def seen(self) -> None:
        self._last = time.monotonic()

    def stop(self) -> None:
        self._stopped.set()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.2):
            self.late = time.monotonic() - self._last > self.limit
            if self.late or self.unwanted.is_set():
                self.process.kill()
                return


class Room:
    """Device memory that is lent to processes until there is none left; one that needs all of it runs by itself."""

    def __init__(self, total: int):
        self.total, self._used, self._changed = total, 0, threading.Condition()

    def taken(self, size: int):
        return _Loan(self, min(size, self.total))


class _Loan:
    def __init__(self, room: Room, size: int):
        self.room, self.size = room, size

    def __enter__(self) -> None:
        with self.room._changed:
            self.room._changed.wait_for(lambda: self.room._used + self.size <= self.room.total)
            self.room._used += self.size

    def __exit__(self, *_) -> None:
        with self.room._changed:
            self.room._used -= self.size
            self.room._changed.notify_all()


def _memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 2**62
    return int(0.8 * torch.cuda.mem_get_info(device)[0])
