"""A run's folder as it is: what has become of the rows at every stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from afn_model.curate.commit import ShardOutcomes
from afn_model.curate.rows import shard_names
from afn_model.curate.run import PLAN
from afn_model.curate.takedown import read_takedown
from afn_model.files import read_json

ERRORS = 5  # that are named of a stage


class RunFolder:
    """A folder of ``afn curate run``, read without the modules of its stages.

    Args:
        out: the folder.

    Raises:
        ValueError: no run is in it.
    """

    def __init__(self, out: str | Path):
        self.out = Path(out)
        if not (self.out / PLAN).is_file():
            raise ValueError(f"{out}: no run of afn curate is in it")
        self.told = read_json(self.out / PLAN)
        self.stages: list[dict[str, Any]] = self.told["stages"]
        self.names = [stage["stage"] for stage in self.stages]
        self.shards = shard_names(self.told["shards"])

    def folder(self, stage: str) -> Path:
        key = next(one["key"] for one in self.stages if one["stage"] == stage)
        return self.out / "stages" / f"{stage}-{key}"

    def store(self, stage: str, shard: str) -> ShardOutcomes:
        return ShardOutcomes(self.folder(stage), shard)

    def lines(self, stage: str, shard: str) -> Iterator[dict[str, Any]]:
        """The committed lines; none where nothing is committed."""
        store = self.store(stage, shard)
        return store.lines() if store.claims() is not None else iter(())

    def history(self, shard: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
        """What became of each row of a shard: (stage, outcome) in order."""
        found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for stage in self.names:
            for line in self.lines(stage, shard):
                found.setdefault(line["id"], []).append((stage, line))
        return found


@dataclass
class StageStatus:
    """What has become of the rows at a stage.

    Args:
        stage, version: which.
        shards, of: that are committed, of how many.
        working: rows with a checkpoint in shards that are not.
        rows, kept, dropped, failed, retryable, tally: of those committed; dropped by reason; failed rows are
            quarantined, and of these an error may pass of the retryable.
        errors: the commonest of the quarantined, with a row of each: [error, rows, id].
    """

    stage: str
    version: int
    of: int
    shards: int = 0
    working: int = 0
    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    retryable: int = 0
    tally: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass
class RunStatus:
    """A run's folder.

    Args:
        plan: its name.
        stages: in order.
        taken: rows that were taken down.
        stale: folders of stages with other versions or parameters, with their bytes; nothing reads them, unless the
            plan goes back.
    """

    plan: str
    stages: list[StageStatus]
    taken: int
    stale: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        for one, stage in zip(told["stages"], self.stages, strict=True):
            one |= {"dropped": dict(stage.dropped), "tally": dict(stage.tally)}
        return told


def status(out: str | Path) -> RunStatus:
    """What manifests say, and the errors of quarantined rows.

    Raises:
        ValueError: no run is in the folder.
    """
    run = RunFolder(out)
    stages = [_status_of(run, stage) for stage in run.stages]
    current = {run.folder(name).name for name in run.names}
    stale = {
        folder.name: sum(path.stat().st_size for path in folder.iterdir())
        for folder in sorted((run.out / "stages").glob("*-*"))
        if folder.name not in current
    }
    return RunStatus(run.told["name"], stages, len(read_takedown(out).rows), stale)


def _status_of(run: RunFolder, stage: dict[str, Any]) -> StageStatus:
    name, errors, first = stage["stage"], Counter[str](), dict[str, str]()
    found = StageStatus(name, stage["version"], len(run.shards))
    for shard in run.shards:
        store = run.store(name, shard)
        if store.part.is_file():
            found.working += sum(b'"of"' in line for line in store.part.read_bytes().splitlines())
        if (told := store.claims()) is None:
            continue
        found.shards += 1
        for count in ("rows", "kept", "failed", "retryable"):
            setattr(found, count, getattr(found, count) + told[count])
        found.dropped.update(told["dropped"])
        found.tally.update(told["tally"])
        if told["failed"]:
            for line in store.lines():
                if "failed" in line:
                    errors[line["failed"]["error"]] += 1
                    first.setdefault(line["failed"]["error"], line["id"])
    found.errors = [(error, count, first[error]) for error, count in errors.most_common(ERRORS)]
    return found


def text(found: RunStatus) -> str:
    """A table of the stages, then reasons, errors and what is stale."""
    table = [("stage", "shards", "rows", "kept", "dropped", "quarantined"), *map(_row, found.stages)]
    widths = [max(len(row[column]) for row in table) for column in range(6)]
    said = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
    for stage in found.stages:
        said += [f"{stage.stage}: dropped {count:,}: {reason}" for reason, count in stage.dropped.most_common()]
        said += [f"{stage.stage}: {count:,} {name}" for name, count in sorted(stage.tally.items())]
        said += [f"{stage.stage}: quarantined {count:,}: {error} (such as {one})" for error, count, one in stage.errors]
        if stage.retryable:
            said.append(f"{stage.stage}: {stage.retryable:,} of the quarantined are tried again by the next run")
        if stage.working:
            said.append(f"{stage.stage}: {stage.working:,} rows of shards that are not committed have a checkpoint")
    if found.taken:
        said.append(f"{found.taken:,} rows were taken down")
    said += [f"stages/{name}: {size:,} bytes of another version or parameters" for name, size in found.stale.items()]
    return "\n".join(said)


def _row(stage: StageStatus) -> tuple[str, ...]:
    counts = (stage.rows, stage.kept, sum(stage.dropped.values()), stage.failed)
    return (stage.stage, f"{stage.shards}/{stage.of}", *(f"{count:,}" for count in counts))
