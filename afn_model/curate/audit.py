"""Whether a run's folder holds what it says: every row once, none beyond its end, files as their manifests say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from afn_model.curate.commit import counts
from afn_model.curate.lineage import exported, texts
from afn_model.curate.status import RunFolder
from afn_model.curate.takedown import Takedown, read_takedown

SHOWN = 3  # ids that a finding names


@dataclass
class _Seen:
    """What was found on the way: names of rows, those that reach the end, and those that may not be trained on."""

    wrong: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)


def audit(out: str | Path) -> list[str]:
    """What is wrong, a line each: files that are not what their manifests say, rows that are lost, twice there, or
    beyond the stage that dropped them; rows at the end that have no licence to be trained on or were taken down; and
    exported records of rows that did not reach the end.

    Raises:
        ValueError: no run is in the folder.
    """
    run, taken, seen = RunFolder(out), read_takedown(out), _Seen()
    for shard in run.shards:
        _audit_shard(run, taken, shard, seen)
    if leaked := sorted(seen.denied & seen.alive):
        seen.wrong.append(f"{run.names[-1]}: {_named(leaked)} kept without a licence to be trained on")
    for record in exported(run.out):
        rows = sorted({seen.names[text] for text in texts(record) if text in seen.names} - seen.alive)
        if rows:
            seen.wrong.append(f"export: record {record.get('id')} is of {_named(rows)} not kept to the end")
    return seen.wrong


def _audit_shard(run: RunFolder, taken: Takedown, shard: str, seen: _Seen) -> None:
    ended, before, hashes, out = dict[str, str](), None, dict[str, str](), set(taken.rows)
    for stage in run.stages:
        name = stage["stage"]
        where, store = f"{name}, {shard}", run.store(name, shard)
        claims = store.claims()
        try:
            if claims is None:
                raise ValueError("not committed")
            if store.manifest() is None:
                raise ValueError("the file is not what its manifest says")
            lines = list(store.lines())
            told = counts(lines)
        except ValueError as error:
            seen.wrong.append(f"{where}: {error}")
            return
        ids = [line["id"] for line in lines]
        gone = [one for one in ids if one in out] if before is not None else []
        changed = [one for one in stage["before"] if claims["inputs"].get(one, hashes[one]) != hashes[one]]
        lost = (before or set()) - set(ids) if "until" not in claims["inputs"] else set[str]()
        new = sorted(set(ids) - before - set(ended) - set(gone)) if before is not None else []
        for wrong, told_of in (
            ([key for key, value in told.items() if claims.get(key) != value], "the manifest lies about {}"),
            (changed, "made from another file of {} than is there"),
            ([one for one in ids if one in ended], "row {} had ended before"),
            ([one for one, count in Counter(ids).items() if count > 1], "row {} twice"),
            (gone, "row {} was taken down; the next run leaves it out"),
            (sorted(lost), "row {} is lost, which the stage before kept"),
            (new, "row {} came from nowhere"),
        ):
            if wrong:
                more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
                seen.wrong.append(f"{where}: {told_of.format(', '.join(wrong[:SHOWN]) + more)}")
        out |= {line["id"] for line in lines if taken.has(line)}  # a recording is known from the stage on that reads it
        before = {line["id"] for line in lines if "fields" in line} - out
        for line in lines:
            fields = line.get("fields")
            if fields is None:
                ended[line["id"]] = name
                continue
            seen.names |= {text: line["id"] for text in (line["id"], fields.get("url")) if isinstance(text, str)}
            uses = fields.get("uses")
            if isinstance(uses, dict) and uses.get("train") is False:
                seen.denied.add(line["id"])
        hashes[name] = claims["sha256"]
    seen.alive |= before or set()


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"row {', '.join(ids[:SHOWN])}{more}"
