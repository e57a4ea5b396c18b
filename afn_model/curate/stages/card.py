"""The data card and the curriculum of an export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from afn_model.curate.stage import Row
from afn_model.curate.stages.quotas import value_of

MOST = 50  # lines of a table
WEAK = "-weak"  # behind the axis of records that can be answered without hearing, in the names of files
WEAK_WEIGHT = 0.25
Exported = Sequence[tuple[Row, Sequence[Mapping[str, Any]]]]  # recordings with their records


def card(exported: Exported, counts: Sequence[str], taken: int, annotators: Mapping[str, Any]) -> str:
    """What is in an export, as Markdown: nothing in it depends on when or where it was written."""
    records = [record for _, listed in exported for record in listed]
    hours = sum(row["seconds"] for row, _ in exported) / 3600
    held = sum(row["seconds"] for row, listed in exported if listed[0]["split"] == "heldout") / 3600
    text = ["# Data card", "", f"{len(exported):,} recordings, {hours:,.2f} hours, {len(records):,} records;"]
    text += [f"{held:,.2f} of the hours are held out.", ""]
    by_task = Counter((record["axis"] or "-", record["task"] or "-") for record in records)
    text += _table(("axis", "task", "records"), [(*key, f"{count:,}") for key, count in sorted(by_task.items())])
    fields = {"licence": "uses.licence", "channel": "channel", **{name: name for name in counts}}
    for name, place in fields.items():
        text += ["", f"## By {name}", ""]
        text += _counted(name, [(value_of(row, place) or "-", row, len(listed)) for row, listed in exported])
    text += ["", "## By source", ""]
    text += _counted("source", [(listed[0]["source"], row, len(listed)) for row, listed in exported])
    text += ["", "## Annotators", ""]
    made = Counter[tuple[str, str, str]]()
    for record in records:
        told = record["lineage"]
        made[told["product"], str(told.get("annotator", "-")), str(told.get("prompt", "-"))] += 1
    text += _table(("product", "annotator", "prompt", "records"), [(*key, f"{n:,}") for key, n in sorted(made.items())])
    if annotators:
        text += ["", f"The plan names {', '.join(sorted(annotators))}."]
    flags = Counter(flag for row, _ in exported for flag in (row.get("privacy") or {}).get("flags", ()))
    found = Counter[str]()
    for row, _ in exported:
        found.update((row.get("privacy") or {}).get("found", {}))
    text += ["", "## Privacy", ""]
    text += [f"- masked and silenced: {kind}, {count:,} times" for kind, count in sorted(found.items())]
    text += [f"- flagged {flag}: {count:,} recordings" for flag, count in sorted(flags.items())]
    text += ["Nothing was found or flagged."] * (not found and not flags)
    text += ["", "## Takedowns", "", f"{taken:,} were asked for and are left out."]
    return "\n".join(text) + "\n"


def _counted(name: str, given: Sequence[tuple[str, Row, int]]) -> list[str]:
    """A table of recordings, hours and records by a value, the longest first."""
    recordings, seconds, records = Counter[str](), Counter[str](), Counter[str]()
    for value, row, count in given:
        recordings[value] += 1
        seconds[value] += row["seconds"]
        records[value] += count
    order = sorted(seconds, key=lambda value: (-round(seconds[value], 3), value))
    rows = [(one, f"{recordings[one]:,}", f"{seconds[one] / 3600:,.2f}", f"{records[one]:,}") for one in order]
    more = [f"\nand {len(rows) - MOST:,} more"] if len(rows) > MOST else []
    return _table((name, "recordings", "hours", "records"), rows[:MOST]) + more


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") or "-" for cell in cells) + " |"

    return [line(head), "|" + " --- |" * len(head), *map(line, rows)]


def curriculum(
    axes: Sequence[str], weights: Mapping[str, float], lines: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """A curriculum of one stage that blends the files of an export, as YAML; β is how often a file is seen per epoch.

    Args:
        axes: that have a file for training.
        weights: β by axis; where none is given 1, and less of what can be answered without hearing.
        lines: records by file.
    """
    longest = max(record["duration"] for axis in axes for record in lines[f"train-{axis}"])
    stage: dict[str, Any] = {
        "trains": ["adaptor", "language_model"],
        "max_audio": max(30, -(-int(1000 * longest) // 1000)),
        "context": 8192,
        "batch_tokens": 131_072,
        "lr": 1e-5,
        "blend": {axis: weights.get(axis, WEAK_WEIGHT if axis.endswith(WEAK) else 1) for axis in axes},
    }
    datasets = {axis: f"data/train-{axis}.jsonl" for axis in axes}
    told = {"name": "curated", "seed": 0, "datasets": datasets, "stages": {"sft": stage}}
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
