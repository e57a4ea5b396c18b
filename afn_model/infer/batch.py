"""A file of requests answered into a file of answers, which a run that was killed goes on with.

Lines about one recording follow each other, so that it is heard once; the longest recordings come first. Each answer is
appended as soon as it is there. What a line is answered with is a function of the line, its id and the defaults: not of
its place, its neighbours, or how many engines share the work.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afn_model.audio.recording import measured_seconds
from afn_model.checks import shown
from afn_model.data.records import duration
from afn_model.infer.batch_lines import BatchLine, key_of, read_line, recording_key, recordings
from afn_model.infer.batch_replica import Workers
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import Turn

PIECE = 64  # lines about one recording that go to an engine together, at most
SENT = 256 << 20  # bytes of lines that are with an engine, at most
BEGIN = b'{"id": '


@dataclass
class BatchItem:
    """A line that is to be answered: its place and size in the file, what it is about, and seconds of that."""

    line: BatchLine
    offset: int
    size: int
    about: tuple = ()
    seconds: float = 0.0


@dataclass
class BatchProgress:
    """Lines and seconds of audio that are done, of how many, and lines with errors. Lines that an earlier run has
    answered count in ``before`` alone; ``others`` are lines of the answers' file that no batch has written."""

    lines: int = 0
    of_lines: int = 0
    seconds: float = 0.0
    of_seconds: float = 0.0
    errors: int = 0
    before: int = 0
    others: int = 0


class BatchOutput:
    """The file of answers: only one process has it, and every line in it is whole.

    Args:
        path: of the file, made if need be. A last line that a killed run has left torn is cut off.
        retry_errors: lines with errors are not done.
        skip_others: lines that no batch has written stay and are counted in ``others``.

    Raises:
        ValueError: another process has it, or it holds something else.
    """

    def __init__(self, path: str | Path, *, retry_errors: bool = False, skip_others: bool = False):
        self.path, self.done, self.retry_errors = Path(path), set[str](), retry_errors
        self.skip_others, self.others = skip_others, 0
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            self.size = self._read()
            os.ftruncate(self.handle, self.size)
        except BaseException:
            os.close(self.handle)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system gives it back when the process ends
        except BlockingIOError:
            raise ValueError(f"{self.path}: another process is writing to it; wait for its end") from None
        except OSError:
            return  # a file system without locks

    def _read(self) -> int:
        """Bytes of whole lines, whose keys are noted."""
        size, last = 0, b""
        with self.path.open("rb") as file:
            for number, last in enumerate(file, 1):
                if not last.endswith(b"\n"):
                    break
                try:
                    row = json.loads(last)
                except (ValueError, RecursionError):
                    row = None
                key = key_of(row) if isinstance(row, dict) else None
                size += len(last)
                if self.skip_others and key is None:
                    self.others += 1
                    continue
                if row is None or key is None:
                    what = "no line that a batch has written; choose another file"
                    raise ValueError(f"{self.path}, line {number}: {what}")
                if not (self.retry_errors and row.get("error")):
                    self.done.add(key)
        if not self.skip_others and not last.endswith(b"\n") and last[: len(BEGIN)] != BEGIN[: len(last)]:
            raise ValueError(f"{self.path}: no file that a batch has written; choose another one")
        return size

    def write(self, row: dict[str, Any]) -> None:
        """Adds a line, all of it or nothing.

        Raises:
            ValueError: the disk is full, or the like.
        """
        left = memoryview(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        whole = len(left)
        try:
            while left:
                left = left[os.write(self.handle, left) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self.handle, self.size)
            what = "what was answered before is in it, and the same command goes on from there"
            raise ValueError(f"{self.path}: {error.strerror}; {what}") from None
        self.size += whole

    def close(self) -> None:
        with suppress(OSError):  # a pipe, or the null device
            os.fsync(self.handle)
        os.close(self.handle)


def answer_batch(
    source: str | Path,
    target: str | Path,
    workers: Callable[[], Workers],
    *,
    defaults: SamplingParams,
    together: int = 64,
    in_order: bool = False,
    limit: int | None = None,
    max_errors: int | None = None,
    retry_errors: bool = False,
    skip_others: bool = False,
    on_progress: Callable[[BatchProgress], Any] | None = None,
) -> BatchProgress:
    """Answers the lines of a file that another file has no answers to.

    Args:
        source: the JSON Lines of requests.
        target: the JSON Lines of answers.
        workers: makes what answers, if there is something to answer.
        defaults: how a line is answered that does not say.
        together: answers that grow in each replica at the same time, at most.
        in_order: lines are answered and written in the order of ``source``.
        limit: lines that are looked at.
        max_errors: lines with errors after which it is given up; None for no bound.
        retry_errors: lines whose answer in ``target`` is an error are answered again, in a new line.
        skip_others: lines of ``target`` that no batch has written are counted, not refused.
        on_progress: called before the first line and after each.

    Returns:
        what was done.

    Raises:
        ValueError: files that cannot be used, more errors than ``max_errors``, or what workers raise.
    """
    if not os.path.isfile(source):
        raise ValueError(f"{source}: {'not a regular file' if os.path.exists(source) else 'no such file'}")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"{target}: is the file of requests; the answers need one of their own")
    if os.path.exists(target) and not os.path.isfile(target):
        raise ValueError(f"{target}: is there and not a regular file")
    output = BatchOutput(target, retry_errors=retry_errors, skip_others=skip_others)
    try:
        items, before = look(source, defaults, output.done, limit)
        progress = BatchProgress(of_lines=len(items), of_seconds=_seconds(items), before=before, others=output.others)
        if on_progress is not None:
            on_progress(progress)
        if items:
            _Deal(source, output, items, progress, together, in_order, max_errors, on_progress).run(workers)
        return progress
    finally:
        output.close()


def look(
    source: str | Path, defaults: SamplingParams, done: set[str], limit: int | None
) -> tuple[list[BatchItem], int]:
    """What is to be answered, in the order of the file, and how many lines are answered already.

    Args:
        source, defaults, limit: as of ``answer_batch``.
        done: keys of lines that are answered.
    """
    folder = os.path.dirname(os.fspath(source))
    items, before, seen, lengths, offset = [], 0, dict[str, int](), dict[tuple, float](), 0
    with open(source, "rb") as file:
        for number, raw in enumerate(file, 1):
            if limit is not None and len(items) + before >= limit:
                break
            at, offset = offset, offset + len(raw)
            if not raw.strip():
                continue
            line = read_line(raw, number)
            if (first := seen.setdefault(line.key, number)) != number:
                twice = f"line {number} has the id {shown(line.id)} of line {first}, which alone is answered"
                line = replace(line, problem=twice)
            if (f"line {number}" if first != number else line.key) in done:
                before += 1
                continue
            item = BatchItem(replace(line, fields={}), at, len(raw))
            if not line.problem:
                with suppress(ValueError):  # which will be told when its turn comes
                    turns = line.request(folder, defaults).turns
                    item.about = recordings(turns)
                    item.seconds = (0 if line.openai else duration(line.fields)) or _measured(turns, lengths)
            items.append(item)
    return items, before


def _measured(turns: list[Turn], lengths: dict[tuple, float]) -> float:
    total = 0.0
    for audio in {recording_key(audio): audio for turn in turns for audio in turn.audios}.values():
        key = recording_key(audio)
        if key not in lengths:
            try:
                lengths[key] = measured_seconds(audio)
            except ValueError:
                lengths[key] = 0.0
        total += lengths[key]
    return total


def _seconds(items: Sequence[BatchItem]) -> float:
    """Of audio, that of several lines once."""
    return sum({item.about: item.seconds for item in items}.values())


def pieces_of(items: Sequence[BatchItem], in_order: bool) -> Iterator[list[BatchItem]]:
    """Lines that go to one engine together: those about one recording, the longest recordings first."""
    groups: dict[Any, list[BatchItem]] = {}
    for item in items:
        own = in_order or not item.about
        groups.setdefault(item.line.number if own else item.about, []).append(item)
    for group in groups.values() if in_order else sorted(groups.values(), key=lambda group: -group[0].seconds):
        yield from (group[at : at + PIECE] for at in range(0, len(group), PIECE))


@dataclass
class _Deal:
    """Deals lines to workers, and writes what they return."""

    source: str | Path
    output: BatchOutput
    items: list[BatchItem]
    progress: BatchProgress
    together: int
    in_order: bool
    max_errors: int | None
    on_progress: Callable[[BatchProgress], Any] | None

    def run(self, make: Callable[[], Workers]) -> None:
        self.by_number = {item.line.number: item for item in self.items}
        self.order, self.kept, self.heard = deque(self.by_number), dict[int, dict[str, Any]](), set[tuple]()
        for item in self.items:
            if item.line.problem:
                twice = "duplicate_id" if item.line.id is not None else "invalid_request"
                self.record(item.line.number, item.line.error(item.line.problem, twice))
        todo = [item for item in self.items if not item.line.problem]
        if not todo:
            return
        workers = make()
        try:
            self.deal(workers, deque(pieces_of(todo, self.in_order)), len(todo))
        finally:
            workers.close()

    def deal(self, workers: Workers, pieces: deque[list[BatchItem]], left: int) -> None:
        given, sizes, idle = [0] * workers.count, [0] * workers.count, set(range(workers.count))
        with open(self.source, "rb") as file:
            while True:
                for index in sorted(idle):
                    lines: list[tuple[int, bytes]] = []
                    most = min(2 * self.together - given[index], math.ceil(left / workers.count))
                    while pieces and len(lines) < most and sizes[index] < SENT:
                        for item in pieces.popleft():
                            file.seek(item.offset)
                            lines.append((item.line.number, file.readline()))
                            sizes[index] += item.size
                    left -= len(lines)
                    given[index] += len(lines)
                    if given[index]:
                        workers.send(index, lines)
                        idle.discard(index)
                if len(idle) == workers.count:
                    return
                index, rows = workers.receive()
                idle.add(index)
                given[index] -= len(rows)
                for number, row in rows:
                    sizes[index] -= self.by_number[number].size
                    self.record(number, row)

    def record(self, number: int, row: dict[str, Any]) -> None:
        """A line is done; it is written when it is its turn."""
        self.kept[number] = row
        if not self.in_order:
            self.write(number)
        while self.in_order and self.order and self.order[0] in self.kept:
            self.write(self.order.popleft())

    def write(self, number: int) -> None:
        row, item, progress = self.kept.pop(number), self.by_number[number], self.progress
        self.output.write(row)
        progress.lines += 1
        if item.about not in self.heard:
            self.heard.add(item.about)
            progress.seconds += item.seconds
        progress.errors += bool(row.get("error"))
        if self.on_progress is not None:
            self.on_progress(progress)
        if self.max_errors is not None and progress.errors > self.max_errors:
            why = f"{progress.errors} lines with errors; the last one, line {number}: {row['error']['message']}"
            raise ValueError(f"{self.source}: {why}")
