"""The report of a run: report.md and a picture of what became of the rows at every stage."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from afn_model.curate.chains import yields
from afn_model.curate.spending import Spending
from afn_model.curate.status import RunFolder, RunStatus, status
from afn_model.curate.takedown import read_takedown
from afn_model.files import write_text
from afn_model.plot_style import COLOURS, GRID, INK, LOSES, OURS, plotting, save

REPORT, PICTURE = "report.md", "rows.png"
BY = ("licence", "language", "channel", "genre")  # fields by whose values rows are counted
VALUES = 10  # of a field that are listed
WHYS = 3  # reasons that are listed of what filters take
LOST = " lost: "  # in a tally, between what was taken and why
THINK_FILTERS = "think-filters"


def write_report(out: str | Path) -> Path:
    """Writes OUT/report.md and OUT/rows.png.

    Raises:
        ValueError: no run is in the folder, or matplotlib is not installed.
    """
    run, found = RunFolder(out), status(out)
    draw(run.out / PICTURE, found)
    said = [f"# Curation: {found.plan}", "", f"![rows by stage]({PICTURE})", "", *_stages(run, found)]
    said += [*taken_by_filters(found), *_reasons(found)]
    for name, values in by_value(run).items():
        said += ["", f"## By {name}", "", f"| {name} | rows | kept | dropped | quarantined |", "|---|--:|--:|--:|--:|"]
        for value, ends in sorted(values.items(), key=lambda pair: (-sum(pair[1].values()), pair[0]))[:VALUES]:
            counts = (sum(ends.values()), ends["kept"], ends["dropped"], ends["failed"])
            said.append(f"| {_cell(value)} | {' | '.join(f'{count:,}' for count in counts)} |")
        if len(values) > VALUES:
            said.append(f"| {len(values) - VALUES:,} more | | | | |")
    if found.stale:
        said += ["", f"{len(found.stale)} folders of other versions hold {sum(found.stale.values()):,} bytes."]
    path = run.out / REPORT
    write_text(path, "\n".join(said) + "\n")
    return path


def by_value(run: RunFolder) -> dict[str, dict[str, Counter[str]]]:
    """{field: {value: rows by their end: kept, dropped or failed}}, of the fields in ``BY`` that stages wrote."""
    found: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    taken = read_takedown(run.out).rows
    for shard in run.shards:
        ends, values = dict[str, str](), dict[str, dict[str, str]]()
        for stage in run.stages:
            wanted = [name for name in BY if name in stage["writes"]]
            for line in run.lines(stage["stage"], shard):
                end = "kept" if "fields" in line else "dropped" if "dropped" in line else "failed"
                ends[line["id"]] = end
                for name in wanted if end == "kept" else ():
                    value = line["fields"].get(name)
                    values.setdefault(line["id"], {})[name] = "unknown" if value is None else str(value)
        for row_id, own in values.items():
            if row_id in taken:
                continue
            for name, value in own.items():
                found[name][value][ends[row_id]] += 1
    return {name: dict(found[name]) for name in BY if name in found}


def _stages(run: RunFolder, found: RunStatus) -> list[str]:
    said = [
        "| stage | rows | kept | dropped | quarantined | calls | tokens | seconds of work |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for stage in found.stages:
        spent = Spending(run.out / "spent" / f"{run.folder(stage.stage).name}.jsonl").look().total
        cells = (stage.rows, stage.kept, sum(stage.dropped.values()), stage.failed, spent["calls"], spent["tokens"])
        unfinished = "" if stage.shards == stage.of else f" ({stage.shards} of {stage.of} shards)"
        said.append(
            f"| {stage.stage}{unfinished} | {' | '.join(f'{cell:,.0f}' for cell in cells)} | {spent['seconds']:,.1f} |"
        )
    if found.taken:
        said += ["", f"{found.taken:,} rows were taken down."]
    return said


def taken_by_filters(found: RunStatus) -> list[str]:
    """Lines of Markdown: what filters have taken out of what was made, and why; how many chains have passed which."""
    said: list[str] = []
    for stage in found.stages:
        taken = defaultdict[str, Counter[str]](Counter)
        for name, count in stage.tally.items():
            what, lost, why = name.partition(LOST)
            if lost:
                taken[what][why] += count
        for what, whys in sorted(taken.items()):
            listed = ", ".join(f"{why} {count:,}" for why, count in whys.most_common(WHYS))
            more = f", {len(whys) - WHYS} more" if len(whys) > WHYS else ""
            said.append(f"| {stage.stage} | {_cell(what)} | {whys.total():,} | {_cell(listed)}{more} |")
    if said:
        head = ["| stage | of what | taken | why |", "|---|---|--:|---|"]
        said = ["", "## What filters have taken", "", *head, *said]
    tally = next((stage.tally for stage in found.stages if stage.stage == THINK_FILTERS), None)
    if tally:
        from afn_model.curate.stages.think_filters import ORDER

        said += ["", "## Chains of thought", "", "| filter | came | passed | share |", "|---|--:|--:|--:|"]
        for one in yields(tally, ORDER):
            share = f"{one.share:.0%}" if one.checked else "not checked"
            said.append(f"| {one.name} | {one.entered:,} | {one.left:,} | {share} |")
    return said


def _reasons(found: RunStatus) -> list[str]:
    said: list[str] = []
    for title, told in (("Dropped", "dropped"), ("Inside of rows", "tally")):
        counts = [
            (stage.stage, name, count)
            for stage in found.stages
            for name, count in sorted(getattr(stage, told).items(), key=lambda pair: (-pair[1], pair[0]))
        ]
        if counts:
            what = "reason" if told == "dropped" else "what"
            said += ["", f"## {title}", "", f"| stage | {what} | number |", "|---|---|--:|"]
            said += [f"| {stage} | {_cell(name)} | {count:,} |" for stage, name, count in counts]
    errors = [(stage.stage, *one) for stage in found.stages for one in stage.errors]
    if errors:
        said += ["", "## Quarantined", "", "| stage | error | rows | such as |", "|---|---|--:|---|"]
        said += [f"| {stage} | {_cell(error)} | {count:,} | {row_id} |" for stage, error, count, row_id in errors]
    return said


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def draw(path: str | Path, found: RunStatus) -> Path:
    """Bars of the rows at every stage: kept, dropped and quarantined.

    Raises:
        ValueError: matplotlib is not installed.
    """
    with plotting() as plt:
        figure, axes = plt.subplots(figsize=(7.2, 1.2 + 0.27 * len(found.stages)), layout="constrained")
        names = [stage.stage for stage in found.stages]
        left = [0] * len(names)
        parts: tuple[tuple[str, str, list[int]], ...] = (
            ("kept", OURS, [stage.kept for stage in found.stages]),
            ("dropped", COLOURS[3], [sum(stage.dropped.values()) for stage in found.stages]),
            ("quarantined", LOSES, [stage.failed for stage in found.stages]),
        )
        for label, colour, counts in parts:
            axes.barh(names, counts, left=left, color=colour, height=0.72, label=label)
            left = [before + count for before, count in zip(left, counts, strict=True)]
        most = max([*left, 1])
        for place, stage in enumerate(found.stages):
            axes.text(left[place] + most / 100, place, _said(stage), va="center", fontsize=7.5, color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * most)
        axes.set_xlabel("recordings")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=GRID)
        axes.set_title(f"{found.plan}: what became of the recordings at every stage")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
        return save(figure, path)


def _said(stage: Any) -> str:
    dropped = sum(stage.dropped.values())
    parts = [f"{stage.kept:,}", f"{dropped:,} dropped" if dropped else ""]
    parts.append(f"{stage.failed:,} quarantined" if stage.failed else "")
    return ", ".join(part for part in parts if part)
