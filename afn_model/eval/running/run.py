"""Runs benchmarks: asks what has no answer yet, longest recordings first, and goes on where a run was stopped."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from afn_model.checks import said
from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders import load
from afn_model.eval.running.ablations import ablate
from afn_model.eval.running.answers import FOLDER, answered, read_answers
from afn_model.eval.running.asks import Ask, AskSettings, asks_of
from afn_model.eval.running.clip_digests import ClipDigests
from afn_model.eval.table import BenchmarkRow
from afn_model.files import append_row, read_json, write_json, write_rows
from afn_model.hashing import text_key
from afn_model.infer.batch import BatchProgress, answer_batch
from afn_model.infer.batch_replica import Workers
from afn_model.infer.sampling_params import SamplingParams

DIGESTS = "clips.jsonl"  # of recordings
RUN = "run.json"  # what was asked for
SPENT = "spent.jsonl"  # a line for each process that has ended: when it began, seconds, answers


@dataclass(frozen=True)
class Share:
    """Which part of the questions a process answers: those whose key falls to ``index`` of ``count``."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"share {self.index + 1}/{self.count}: the first number is from 1 to the second")

    def has(self, key: str) -> bool:
        return text_key(key.encode("utf-8", "surrogatepass")) % self.count == self.index


@dataclass
class PreparedRun:
    """The questions of a run by benchmark, and why those that cannot be asked cannot."""

    asks: dict[str, list[Ask]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)  # recordings


def prepare(
    rows: Sequence[BenchmarkRow],
    data: str | Path,
    out: str | Path,
    asking: AskSettings,
    *,
    limit: int | None = None,
    on_row: Callable[[str], Any] | None = None,
) -> PreparedRun:
    """Reads the files of benchmarks and makes the questions about their items.

    Args:
        rows: of the table.
        data: the data folder.
        out: the run's folder; digests of recordings are kept in it.
        asking: how the items are asked.
        limit: only the first items of each benchmark.
        on_row: called with the name of each benchmark before its files are read.
    """
    found, digests = PreparedRun(), ClipDigests(Path(out) / DIGESTS)
    for row in rows:
        if on_row is not None:
            on_row(row.name)
        try:
            items = ablate(asking.ablation, load(row, data)[:limit], Path(out), digests, seed=asking.seed)
            digests.read(clip.path for item in items for clip in item.clips)
            found.asks[row.name] = list(asks_of(row, items, asking, digests, digests.seconds))
        except (OSError, ValueError) as error:
            found.problems[row.name] = said(error)
    found.unreadable = digests.problems
    return found


def run(
    asks: Sequence[Ask],
    out: str | Path,
    workers: Callable[[Path], Workers],
    *,
    share: Share | None = None,
    together: int = 64,
    on_progress: Callable[[BatchProgress], Any] | None = None,
) -> BatchProgress:
    """Asks what has no answer in ``out`` yet; errors of earlier runs are asked again.

    Any number of processes may work on one folder, each with its share; which and how many they were before does not
    matter. A process that is killed loses the answers that were growing.

    Args:
        asks: of all benchmarks of the run.
        out: the run's folder.
        workers: makes what answers, called with the file of questions.
        share: of this process.
        together: answers that grow at the same time, at most.
        on_progress: as of ``answer_batch``.

    Returns:
        what was done of this share; asks with a problem count as errors.

    Raises:
        ValueError: another process has this share, the folder cannot be written to, or what workers raise.
    """
    share, began, out = share or Share(), time.time(), Path(out)
    name = f"{share.index + 1}-of-{share.count}.jsonl"
    questions, told = out / "questions" / name, BatchProgress()

    def noted(progress: BatchProgress) -> None:
        nonlocal told
        told = progress
        if on_progress is not None:
            on_progress(progress)

    with alone(questions):
        rows, mine = read_answers(out), [ask for ask in asks if share.has(ask.key)]
        problems = sum(bool(ask.problem) for ask in mine)
        todo = [ask for ask in mine if not ask.problem and "answer" not in rows.get(ask.key, {})]
        write_rows(questions, (ask.record() for ask in todo))
        try:
            if todo:
                answer_batch(
                    questions,
                    out / FOLDER / name,
                    lambda: workers(questions),
                    defaults=SamplingParams(),
                    together=together,
                    retry_errors=True,
                    skip_others=True,
                    on_progress=noted,
                )
        finally:
            _spend(out, began, told, share)
    told.before, told.errors = len(mine) - len(todo) - problems, told.errors + problems
    return told


@contextmanager
def alone(questions: Path) -> Iterator[None]:
    """Only one process has a share, as its file of questions is written anew.

    Raises:
        ValueError: another one has it, or nothing can be written there.
    """
    handle = None
    try:
        questions.parent.mkdir(parents=True, exist_ok=True)
        (questions.parent.parent / FOLDER).mkdir(exist_ok=True)
        handle = os.open(questions.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system gives it back when the process ends
            except BlockingIOError:
                what = "another process answers this share; wait for its end, or give each process a share of its own"
                raise ValueError(f"{questions}: {what}") from None
        yield
    except OSError as error:
        raise ValueError(f"{error.filename or questions}: {error.strerror or error}") from None
    finally:
        if handle is not None:
            os.close(handle)


def _spend(out: Path, began: float, done: BatchProgress, share: Share) -> None:
    row = {
        "began": datetime.fromtimestamp(began, timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - began, 3),
        "answers": done.lines,
        "errors": done.errors,
        "audio_seconds": round(done.seconds, 3),
        "share": [share.index + 1, share.count],
    }
    with suppress(OSError):
        append_row(out / SPENT, row)


def write_run(
    out: str | Path, rows: Sequence[BenchmarkRow], data: str | Path, asking: AskSettings, limit: int | None
) -> None:
    """Notes what a run is; a folder is of one run alone. The data folder may be another one: no key depends on it.

    Raises:
        ValueError: the folder is of another run.
    """
    told = {
        "benchmarks": [row.name for row in rows],
        "data": str(Path(data).resolve()),
        "limit": limit,
        "asking": json.loads(json.dumps(asking.as_json())),
    }
    path = Path(out) / RUN
    before = read_json(path) if path.is_file() else told
    if differs := list(_differences(before, told)):
        raise ValueError(f"{out}: is the folder of another run ({'; '.join(differs)}); choose another --out")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_json(path, told)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Such as "variant: instruct there, think here"; of values that are long the name alone."""
    for name in dict.fromkeys([*now, *before]):
        one, other = before.get(name), now.get(name)
        if name == "data" or one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from (f"{name}'s {told}" if name != "asking" else told for told in _differences(one, other))
        else:
            told = f"{name}: {_plain(one)} there, {_plain(other)} here"
            yield told if len(told) < 120 else f"{name}: another"


def _plain(value: Any) -> str:
    return (",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)) or "none"


def read_run(out: str | Path) -> dict[str, Any]:
    """What ``write_run`` has noted, "asking" as ``AskSettings``.

    Raises:
        ValueError: there is no run in the folder, or one of another version.
    """
    path = Path(out) / RUN
    if not path.is_file():
        raise ValueError(f"{out}: no run of afn bench run is in it")
    told = read_json(path)
    if missing := [name for name in ("benchmarks", "data", "limit", "asking") if name not in told]:
        raise ValueError(f"{path}: there is no {', '.join(missing)} in it: nothing that afn bench run writes")
    return told | {"asking": AskSettings.of_json(told["asking"], path)}


def answers_of(prepared: PreparedRun, out: str | Path) -> dict[str, list[AnsweredItem]]:
    """Items of each benchmark with their answers."""
    rows = read_answers(out)
    return {name: answered(asks, rows) for name, asks in prepared.asks.items()}
