"""What happened to a recording: from any of its names to its rows, and from a row to all that was made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from afn_model.curate.rows import shard_of
from afn_model.curate.status import RunFolder
from afn_model.curate.takedown import Takedown, read_takedown, write_takedown

EXPORT = "export"
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ID = re.compile(r"\b[0-9a-f]{32}\b")
MADE_BY = ("model", "prompt", "annotation")  # keys that say how a part of a row was made, with other letters around


def explain(out: str | Path, name: str) -> list[dict[str, Any]]:
    """The lineage of every row that a name is of.

    Args:
        out: folder of a run.
        name: id of a row, a recording (source id), a segment, an annotation or an exported record, or a url.

    Returns:
        For each row {"id", "stages": [{"stage", "version", outcome}], "made": how annotations were made, "copies": rows
        that were dropped as copies of it, "taken": whether it was taken down}.

    Raises:
        ValueError: no run is in the folder, or nothing of this name.
    """
    run = RunFolder(out)
    ids = rows_of(run, [name])[name]
    if not ids:
        raise ValueError(f"{out}: no row, recording, segment, annotation, record or url {name!r}")
    versions, taken = {stage["stage"]: stage["version"] for stage in run.stages}, read_takedown(out)
    found = []
    for shard in sorted({shard_of(len(run.shards), row_id) for row_id in ids}):
        history = run.history(shard)
        for row_id in sorted(ids & set(history)):
            steps = history[row_id]
            found.append(
                {
                    "id": row_id,
                    "stages": [
                        {"stage": stage, "version": versions[stage]}
                        | {key: line[key] for key in ("fields", "tally", "dropped", "failed") if key in line}
                        for stage, line in steps
                    ],
                    "made": made_by(line.get("fields") for _, line in steps),
                    "copies": sorted(copies_of(run, {row_id}) - {row_id}),
                    "taken": any(taken.has(line) for _, line in steps),
                }
            )
    return found


def rows_of(run: RunFolder, names: Iterable[str]) -> dict[str, set[str]]:
    """Ids of the rows that have something of a name, or are named so; one pass over the files.

    They are those of the first stage that has it: later ones may tell of recordings in other rows, as pools do.
    """
    quoted = {json.dumps(name, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass"): name for name in names}
    found: dict[str, set[str]] = {name: set() for name in quoted.values()}
    for stage in run.names:
        left = {raw: name for raw, name in quoted.items() if not found[name]}
        for shard in run.shards if left else ():
            with suppress(FileNotFoundError), run.store(stage, shard).path.open("rb") as file:
                for line in file:
                    for raw in left.keys() & _QUOTED.findall(line) if any(raw in line for raw in left) else ():
                        found[left[raw]].add(json.loads(line)["id"])
    if missing := {name for name, ids in found.items() if not ids}:
        for record in exported(run.out):
            if record.get("id") in missing:
                known = {text for text in texts(record) if _ID.fullmatch(text)} - {record["id"]}
                found[record["id"]] |= set().union(*rows_of(run, known).values()) if known else set()
    return found


def copies_of(run: RunFolder, ids: set[str]) -> set[str]:
    """The rows themselves, those that were dropped as copies of one, that one, and so on: a drop's detail names the
    row that stayed."""
    links, known = [], set[str]()
    for stage in run.stages:
        for shard in run.shards if stage["whole"] else ():
            for line in run.lines(stage["stage"], shard):
                known.add(line["id"])
                if "dropped" in line and (named := set(_ID.findall(line["dropped"]["detail"])) - {line["id"]}):
                    links.append({line["id"], *named})
    found, before = set(ids), set[str]()
    while found != before:
        before = set(found)
        found = found.union(*(link & known for link in links if link & before))
    return found


def take_down(out: str | Path, names: Iterable[str]) -> dict[str, Any]:
    """Adds names to OUT/takedown.txt with all their rows, copies too: no stage gets them in the next run.

    Returns:
        {"rows": ids, "sources": ids, "stages": {stage: shards that the next run writes anew}}

    Raises:
        ValueError: no run is in the folder, or nothing of one of the names: nothing is taken down then.
    """
    run, rows, sources = RunFolder(out), dict[str, str](), dict[str, str]()
    for name, ids in rows_of(run, names).items():
        if not ids:
            raise ValueError(f"{out}: no row, recording, segment, annotation, record or url {name!r}: nothing was done")
        rows |= dict.fromkeys(copies_of(run, ids), name)
    touched: dict[str, list[str]] = {}
    for shard in sorted({shard_of(len(run.shards), row_id) for row_id in rows}):
        for stage in run.names:
            for line in run.lines(stage, shard):
                if line["id"] in rows:
                    if source := line.get("fields", {}).get("source_id"):
                        sources[source] = rows[line["id"]]
                    if stage != run.names[0] and shard not in touched.setdefault(stage, []):
                        touched[stage].append(shard)
    write_takedown(out, Takedown(rows, sources))
    return {"rows": sorted(rows), "sources": sorted(sources), "stages": touched}


def made_by(values: Iterable[Any]) -> list[dict[str, str]]:
    """How annotations below were made: each set of model, prompt and annotation ids once."""
    found: dict[str, dict[str, str]] = {}
    for value in values:
        for one in _dicts(value):
            told = {
                key: text
                for key, text in one.items()
                if isinstance(text, str) and any(word in key for word in MADE_BY) and len(text) < 200
            }
            if told:
                found[json.dumps(told, sort_keys=True)] = told
    return [found[key] for key in sorted(found)]


def text(rows: list[dict[str, Any]]) -> str:
    """The lineage as lines."""
    said = []
    for row in rows:
        said.append(f"row {row['id']}{' (taken down)' if row['taken'] else ''}")
        for step in row["stages"]:
            head = f"  {step['stage']} {step['version']}:"
            if "dropped" in step:
                detail = step["dropped"]["detail"]
                said.append(f"{head} dropped: {step['dropped']['reason']}{f' ({detail})' if detail else ''}")
            elif "failed" in step:
                again = ", may pass" if step["failed"]["retryable"] else ""
                said.append(f"{head} quarantined: {step['failed']['error']}{again}")
            else:
                told = ", ".join(f"{name} {_short(value)}" for name, value in step["fields"].items())
                tally = "".join(f"; {count} {name}" for name, count in step.get("tally", {}).items())
                said.append(f"{head} kept{': ' if told else ''}{told}{tally}")
        said += [f"  made by {', '.join(f'{key} {value}' for key, value in one.items())}" for one in row["made"]]
        if row["copies"]:
            said.append(f"  copies: {', '.join(row['copies'])}")
    return "\n".join(said)


def _short(value: Any) -> str:
    told = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    told = " ".join(told.split())
    return told if len(told) <= 80 else f"{told[:77]}..."


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(one)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(one)


def exported(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((out / EXPORT).rglob("*.jsonl")):
        with path.open("rb") as file:
            for line in map(json.loads, file):
                if isinstance(line, dict):
                    yield line
