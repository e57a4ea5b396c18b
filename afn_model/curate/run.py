"""Runs a plan: stage after stage, shard by shard, and goes on where a run was stopped.

A shard of a stage is done when its file is what its manifest says and the files that its rows came from are those that
it was made from. Else its rows are read again: rows that read something else, are new, or had an error that may pass
are run; the others keep their outcomes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

from afn_model.checks import said
from afn_model.curate import identity
from afn_model.curate.commit import ShardOutcomes, is_retryable, line_of
from afn_model.curate.plan import Plan
from afn_model.curate.rows import (
    check_fresh,
    folder_of,
    inputs_of,
    inputs_of_all,
    outcomes,
    rows_for,
    shard_names,
    shard_of,
)
from afn_model.curate.spending import Spending, StopRun
from afn_model.curate.stage import Context, Dropped, Failed, Kept, NotReady, Outcome, Row, Source, Stage
from afn_model.curate.takedown import forget_replies
from afn_model.files import remove_leftovers, write_json

ALL = "all"  # the shard of a stage that sees all rows at once while it works
PLAN = "plan.json"
# Errors of the machine that no row has caused.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class StageDone:
    """What a run has done of a stage.

    Args:
        stage: its name.
        shards: that were written.
        run: rows that were run.
        rows, kept, dropped, failed: rows with an outcome, and which.
        left: rows that a limit or a budget has left for another run.
        stopped: which budget was spent; "" where none was.
        seconds: of work, over all workers.
    """

    stage: str
    shards: int = 0
    run: int = 0
    rows: int = 0
    kept: int = 0
    dropped: int = 0
    failed: int = 0
    left: int = 0
    stopped: str = ""
    seconds: float = 0.0

    def count(self, manifest: dict[str, Any]) -> None:
        self.rows, self.kept = self.rows + manifest["rows"], self.kept + manifest["kept"]
        self.dropped, self.failed = self.dropped + sum(manifest["dropped"].values()), self.failed + manifest["failed"]

    def add(self, other: StageDone) -> None:
        for name in ("shards", "run", "rows", "kept", "dropped", "failed", "left", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.stopped = self.stopped or other.stopped


@dataclass(frozen=True)
class Work:
    """A shard of a stage, as a worker gets it.

    Args:
        plan, out, stage, shard: what is run.
        until: no row after this id is run.
        retry: whether rows are run again that are quarantined for good.
        since: where in the file of what was spent this run began.
    """

    plan: Plan
    out: Path
    stage: str
    shard: str
    until: str | None = None
    retry: bool = False
    since: int = 0

    def again(self, facts: dict[str, Any]) -> bool:
        """Whether a committed shard has rows that are to be run again."""
        return bool(facts["failed"] if self.retry else facts["retryable"])


def run_shard(work: Work) -> StageDone:
    """Runs a stage for the rows of a shard that have no outcome yet, batch by batch, and commits the shard."""
    plan, stage, out = work.plan, work.plan.stage(work.stage), work.out
    began, done = time.monotonic(), StageDone(work.stage)
    store = outcomes(plan, out, stage.name, work.shard)
    with alone(store.part.with_suffix(".lock"), out):
        inputs, manifest = inputs_of(plan, out, stage, work.shard), store.manifest()
        whole = (inputs, inputs | {"until": work.until}) if work.until else (inputs,)
        if manifest is not None and manifest["inputs"] in whole and not work.again(manifest):
            done.count(manifest)
            store.part.unlink(missing_ok=True)
            return done
        known, lines, todo = store.known(), [], []
        for row, of in rows_for(plan, out, stage, work.shard):
            line = known.get(row["id"])
            if line is not None and line["of"] == of and not ((work.retry and "failed" in line) or is_retryable(line)):
                lines.append(line)
            elif work.until is None or row["id"] <= work.until:
                todo.append((row, of))
            else:
                done.left += 1
        context = context_of(work)
        try:
            for batch in _batches(todo, stage.resources.batch):
                lines += _run_batch(stage, batch, context, store)
                done.run += len(batch)
        except StopRun as stop:
            done.left, done.stopped = done.left + len(todo) - done.run, str(stop)
            return done
        finally:
            done.seconds = time.monotonic() - began
        partial = {"until": work.until} if work.until and done.left else {}
        done.count(store.commit(lines, stage=stage.name, version=stage.version, inputs=inputs | partial))
        done.shards = 1
    return done


def _run_batch(stage: Stage, batch: Sequence[tuple[Row, str]], context: Context, store: ShardOutcomes) -> list[Any]:
    began = time.monotonic()
    context.spending.check()
    try:
        found = run_rows(stage, [row for row, _ in batch], context)
    finally:
        context.spending.add(rows=len(batch), seconds=time.monotonic() - began)
    made = [line_of(row["id"], of, one) for (row, of), one in zip(batch, found, strict=True)]
    store.append(made)
    return made


def run_whole(work: Work) -> StageDone:
    """Runs a stage that sees all rows at once, and commits every shard."""
    plan, stage, out = work.plan, work.plan.stage(work.stage), work.out
    began, done, shards = time.monotonic(), StageDone(work.stage), shard_names(work.plan.shards)
    with alone(folder_of(plan, out, stage.name) / f"{ALL}.lock", out):
        stores = {shard: outcomes(plan, out, stage.name, shard) for shard in shards}
        if isinstance(stage, Source):
            inputs, found = {}, _found(stage, context_of(work))
            ofs = {row_id: identity.of(one.fields) for row_id, one in found.items()}
        else:
            inputs = inputs_of_all(plan, out, stage)
            manifests = [store.manifest() for store in stores.values()]
            if all(one is not None and one["inputs"] == inputs and not work.again(one) for one in manifests):
                for one in manifests:
                    done.count(one or {})
                return done
            pairs = sorted(
                (pair for shard in shards for pair in rows_for(plan, out, stage, shard)), key=lambda pair: pair[0]["id"]
            )
            ofs, rows = {row["id"]: of for row, of in pairs}, [row for row, _ in pairs]
            del pairs
            context = context_of(work)
            try:
                context.spending.check()
                made = run_rows(stage, rows, context)
            except StopRun as stop:
                done.left, done.stopped = len(rows), str(stop)
                return done
            context.spending.add(rows=len(rows), seconds=time.monotonic() - began)
            found = dict(zip(ofs, made, strict=True))
            del rows, made
        done.run = len(found)
        by_shard: dict[str, list[str]] = {shard: [] for shard in shards}
        for row_id in found:
            by_shard[shard_of(plan.shards, row_id)].append(row_id)
        for shard, store in stores.items():
            lines = [line_of(row_id, ofs[row_id], found[row_id]) for row_id in by_shard[shard]]
            done.count(store.commit(lines, stage=stage.name, version=stage.version, inputs=inputs))
            done.shards += 1
    done.seconds = time.monotonic() - began
    return done


def _found(stage: Source, context: Context) -> dict[str, Kept]:
    """What a source finds, by the ids of their urls; of two of one url the first."""
    try:
        rows = stage.find(context)
    except (OSError, ValueError, StopRun):
        raise
    except Exception as error:
        raise ValueError(f"stage {stage.name}: {type(error).__name__}: {said(error)}") from error
    found: dict[str, Kept] = {}
    for row in rows:
        if not isinstance(row.get("url"), str):
            raise ValueError(f"stage {stage.name} found a row without a url: {said(ValueError(row))}")
        outcome = Kept(dict(row))
        if wrong := _wrong(stage, outcome):
            raise ValueError(f"{wrong}: {row['url']}")
        found.setdefault(identity.of("candidate", row["url"]), outcome)
    return found


def run_rows(stage: Stage, rows: Sequence[Row], context: Context) -> list[Outcome]:
    """The outcomes of a stage; where it raises, rows are run one by one, and those that raise are quarantined.

    Raises:
        ValueError: the stage sees all rows at once, and raised.
        NotReady: what all rows need is missing.
        OSError: the disk is full or cannot be written to.
        StopRun: a budget is spent.
    """
    if not rows:
        return []
    try:
        found = list(stage.run(rows, context))
        if len(found) != len(rows):
            raise ValueError(f"stage {stage.name} gave {len(found)} outcomes for {len(rows)} rows")
        if wrong := [(place, told) for place, one in enumerate(found) if (told := _wrong(stage, one))]:
            if stage.whole:
                raise ValueError(f"{wrong[0][1]}: row {rows[wrong[0][0]]['id']}")
            for place, told in wrong:
                found[place] = Failed(told)
        return found
    except (StopRun, NotReady):
        raise
    except ImportError as error:
        raise NotReady(f"stage {stage.name}: {said(error)}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise
        if stage.whole:
            raise ValueError(f"stage {stage.name}: {type(error).__name__}: {said(error)}") from error
        if len(rows) == 1:
            again = isinstance(error, (OSError, MemoryError))
            return [Failed(f"{type(error).__name__}: {said(error)}", retryable=again)]
    return [one for row in rows for one in run_rows(stage, [row], context)]


def _wrong(stage: Stage, outcome: Any) -> str:
    """What is wrong with an outcome; "" where nothing is."""
    if isinstance(outcome, Kept):
        if extra := sorted(map(str, set(outcome.fields) - set(stage.writes))):
            return f"stage {stage.name} wrote {', '.join(extra)}, which is not among its writes"
        try:
            identity.of(dict(outcome.fields), dict(outcome.tally))
        except NotReady:
            raise
        except ValueError as error:
            return f"stage {stage.name} wrote {said(error)}"
        return ""
    if isinstance(outcome, Dropped):
        return "" if stage.drops else f"stage {stage.name} dropped a row and does not say that it does"
    return "" if isinstance(outcome, Failed) else f"stage {stage.name} gave no outcome: {type(outcome).__name__}"


Executor = Callable[[Callable[[Work], StageDone], Sequence[Work]], Iterator[StageDone]]


def run(
    plan: Plan,
    out: str | Path,
    executor: Executor,
    *,
    only: str | None = None,
    limit: int | None = None,
    retry: bool = False,
    on_stage: Callable[[StageDone], Any] | None = None,
) -> list[StageDone]:
    """Runs the stages of a plan in order, up to one whose budget is spent.

    Args:
        plan: the plan.
        out: folder of the run.
        executor: maps ``run_shard`` over shards, in any order: one of ``executors``.
        only: the one stage that is run; all if None.
        limit: recordings that are run, the first by id; more of them later keep these. Those that have outcomes
            already keep them.
        retry: also run rows again that are quarantined for good.
        on_stage: called after each stage.

    Raises:
        ValueError: another process curates there, a stage before ``only`` is not done, a stage that sees all rows
            raised, or what a stage needs is missing.
        OSError: the folder cannot be written to.
    """
    out, found = Path(out), list[StageDone]()
    names = [stage.name for stage in plan.stages]
    if only is not None and only not in names:
        raise ValueError(f"no stage {only!r} in the plan; it has {', '.join(names)}")
    out.mkdir(parents=True, exist_ok=True)
    with alone(out / "run.lock", out):
        remove_leftovers(out)
        forget_replies(out)
        write_json(out / PLAN, plan_as_json(plan))
        until = None
        for stage in plan.stages:
            if isinstance(stage, Source) and only in (None, stage.name):
                total = run_whole(_work(plan, out, stage, ALL))
            if isinstance(stage, Source) and limit is not None and only != stage.name:
                until = _until(plan, out, stage, limit)
            if only not in (None, stage.name):
                continue
            if not isinstance(stage, Source):
                if only:
                    check_fresh(plan, out, stage)
                work = replace(_work(plan, out, stage, ALL), until=until, retry=retry)
                total = run_whole(work) if stage.whole else _run_shards(work, executor)
            found.append(total)
            if on_stage is not None:
                on_stage(total)
            if total.stopped:
                break
    return found


def _run_shards(work: Work, executor: Executor) -> StageDone:
    total = StageDone(work.stage)
    for one in executor(run_shard, [replace(work, shard=shard) for shard in shard_names(work.plan.shards)]):
        total.add(one)
    return total


def _until(plan: Plan, out: Path, source: Source, limit: int) -> str | None:
    """The last id of the first recordings."""
    ids = (
        line["id"]
        for shard in shard_names(plan.shards)
        for line in outcomes(plan, out, source.name, shard).lines()
        if "fields" in line
    )
    first = nsmallest(limit, ids)
    return first[-1] if first else None


def _work(plan: Plan, out: Path, stage: Stage, shard: str) -> Work:
    path = spent_path(plan, out, stage.name)
    return Work(plan, out, stage.name, shard, since=path.stat().st_size if path.exists() else 0)


def spent_path(plan: Plan, out: Path, stage: str) -> Path:
    return Path(out) / "spent" / f"{stage}-{plan.keys[stage]}.jsonl"


def context_of(work: Work) -> Context:
    from afn_model.curate.annotators import annotators_of

    plan, out = work.plan, Path(work.out)
    spending = Spending(spent_path(plan, out, work.stage), work.since, (plan.budgets or {}).get(work.stage)).look()
    annotators = annotators_of(plan, out, work.shard, spending)
    return Context(out, work.shard, annotators, plan.seed, plan.folder, spending)


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """What a folder says of the plan that made it."""
    stages = [
        {
            "stage": stage.name,
            "version": stage.version,
            "key": plan.keys[stage.name],
            "parameters": stage.parameters(),
            "reads": list(stage.reads),
            "writes": list(stage.writes),
            "whole": stage.whole,
            "before": list(plan.before[stage.name]),
        }
        for stage in plan.stages
    ]
    return {"name": plan.name, "shards": plan.shards, "seed": plan.seed, "stages": stages}


@contextmanager
def alone(path: Path, out: Path) -> Iterator[None]:
    """Only one process works on this.

    Raises:
        ValueError: another one does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{out}: another process curates there ({path.name})") from None
        yield
    finally:
        os.close(handle)


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[at : at + size] for at in range(0, len(rows), max(size, 1)))
