"""Rows on their way: which shard a row is in, which rows reach a stage, and what their files were made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afn_model.curate import identity
from afn_model.curate.commit import ShardOutcomes
from afn_model.curate.plan import Plan
from afn_model.curate.stage import Source, Stage
from afn_model.curate.takedown import read_takedown


def shard_names(shards: int) -> list[str]:
    return [f"{place:05d}-of-{shards:05d}" for place in range(shards)]


def shard_of(shards: int, row_id: str) -> str:
    """The shard of a row: a function of its id, so that new rows move no other."""
    return f"{int(row_id[:8], 16) % shards:05d}-of-{shards:05d}"


def folder_of(plan: Plan, out: Path, stage: str) -> Path:
    return Path(out) / "stages" / f"{stage}-{plan.keys[stage]}"


def outcomes(plan: Plan, out: Path, stage: str, shard: str) -> ShardOutcomes:
    return ShardOutcomes(folder_of(plan, out, stage), shard)


def inputs_of(plan: Plan, out: Path, stage: Stage, shard: str) -> dict[str, str]:
    """What the rows of a shard come from: {stage: hash of its file}, and "takedown" where rows of it must go.

    Raises:
        ValueError: a stage before it is not done.
    """
    found = {}
    for name in plan.before[stage.name]:
        claims = outcomes(plan, out, name, shard).claims()
        if claims is None:
            raise ValueError(f"stage {stage.name} needs stage {name} first")
        found[name] = claims["sha256"]
    taken = read_takedown(out)
    if gone := sorted(one for one in taken.rows if shard_of(plan.shards, one) == shard):
        found["takedown"] = identity.of(gone)
    if taken.sources and any("source_id" in plan.stage(name).writes for name in found if name != "takedown"):
        found["sources"] = identity.of(sorted(taken.sources))
    return found


def rows_for(plan: Plan, out: Path, stage: Stage, shard: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a shard that reach a stage, sorted by id, with the fields that it reads, and a digest of them.

    They are those that the stage before it kept, and so every stage before that, without what was taken down.

    Raises:
        ValueError: a stage before it is not done.
    """
    taken, found = read_takedown(out), None
    for name in plan.before[stage.name]:
        wanted = set(plan.stage(name).writes) & set(stage.reads)
        kept = {
            line["id"]: {name: value for name, value in line["fields"].items() if name in wanted}
            for line in outcomes(plan, out, name, shard).lines()
            if "fields" in line and not taken.has(line)
        }
        found = kept if found is None else {one: row | kept[one] for one, row in found.items() if one in kept}
    for row_id, fields in sorted((found or {}).items()):
        row = {"id": row_id} | fields
        yield row, identity.of(row)


def inputs_of_all(plan: Plan, out: Path, stage: Stage) -> dict[str, str]:
    """What the rows of a stage come from that sees all of them."""
    return {"all": identity.of([inputs_of(plan, out, stage, shard) for shard in shard_names(plan.shards)])}


def check_fresh(plan: Plan, out: Path, stage: Stage) -> None:
    """
    Raises:
        ValueError: what stands before a stage is not there, or was made from files that have changed since.
    """
    for earlier in plan.stages[: plan.stages.index(stage)]:
        if isinstance(earlier, Source):
            continue
        whole = inputs_of_all(plan, out, earlier) if earlier.whole else None
        for shard in shard_names(plan.shards):
            claims = outcomes(plan, out, earlier.name, shard).claims()
            if claims is None:
                raise ValueError(f"stage {stage.name} needs stage {earlier.name} first")
            inputs = whole or inputs_of(plan, out, earlier, shard)
            if {name: one for name, one in claims["inputs"].items() if name != "until"} != inputs:
                raise ValueError(f"stage {stage.name} needs stage {earlier.name} again: what it reads has changed")
