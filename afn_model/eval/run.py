"""Runs benchmarks: asks what has no answer yet, longest recordings first, and goes on where a run was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from afn_model.eval.ablations import ablate
from afn_model.eval.answers import FOLDER, answered, read_answers
from afn_model.eval.asks import Ask, Asking, asks_of
from afn_model.eval.clip_digests import ClipDigests
from afn_model.eval.items import Answered
from afn_model.eval.loaders import load
from afn_model.eval.table import Benchmark
from afn_model.files import read_json, write_json, write_rows
from afn_model.hashing import text_key
from afn_model.infer.batch import BatchProgress, answer_batch
from afn_model.infer.batch_replica import Workers
from afn_model.infer.sampling_params import SamplingParams

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
        return text_key(key) % self.count == self.index


@dataclass
class Prepared:
    """The questions of a run by benchmark, and why those that cannot be asked cannot."""

    asks: dict[str, list[Ask]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)  # recordings


def prepare(
    rows: Sequence[Benchmark],
    data: str | Path,
    out: str | Path,
    asking: Asking,
    *,
    limit: int | None = None,
) -> Prepared:
    """Reads the files of benchmarks and makes the questions about their items.

    Args:
        rows: of the table.
        data: the data folder.
        out: the run's folder; digests of recordings are kept in it.
        asking: how the items are asked.
        limit: only the first items of each benchmark.
    """
    found, digests = Prepared(), ClipDigests(Path(out) / "clips.jsonl")
    for row in rows:
        try:
            items = ablate(asking.ablation, load(row, data)[:limit], Path(out), seed=asking.seed)
            digests.read(clip.path for item in items for clip in item.clips)
            found.asks[row.name] = list(asks_of(row, items, asking, digests))
        except ValueError as error:
            found.problems[row.name] = str(error)
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
    """
    share, began = share or Share(), time.time()
    name = f"{share.index + 1}-of-{share.count}.jsonl"
    out = Path(out)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    (out / "questions").mkdir(exist_ok=True)
    rows = read_answers(out)
    todo = [ask for ask in asks if share.has(ask.key) and "answer" not in rows.get(ask.key, {})]
    questions = out / "questions" / name
    write_rows(questions, (ask.record() for ask in todo))
    done = BatchProgress()
    if todo:
        done = answer_batch(
            questions,
            out / FOLDER / name,
            lambda: workers(questions),
            defaults=SamplingParams(),
            together=together,
            retry_errors=True,
            on_progress=on_progress,
        )
    done.before = len(asks) - len(todo)
    spent = {
        "began": datetime.fromtimestamp(began, timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - began, 3),
        "answers": done.lines,
        "errors": done.errors,
        "audio_seconds": round(done.seconds, 3),
        "share": [share.index + 1, share.count],
    }
    with (out / SPENT).open("a", encoding="utf-8") as file:
        file.write(json.dumps(spent) + "\n")
    return done


def write_run(out: str | Path, rows: Sequence[Benchmark], data: str | Path, asking: Asking, limit: int | None) -> None:
    """Notes what a run is; a folder is of one run alone.

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
    if path.is_file() and (before := read_json(path)) != told:
        differs = [name for name in told if before.get(name) != told[name]]
        raise ValueError(f"{out}: is the folder of another run: {', '.join(differs)} differ; choose another --out")
    Path(out).mkdir(parents=True, exist_ok=True)
    write_json(path, told)


def answers_of(prepared: Prepared, out: str | Path) -> dict[str, list[Answered]]:
    """Items of each benchmark with their answers."""
    rows = read_answers(out)
    return {name: answered(asks, rows) for name, asks in prepared.asks.items()}
