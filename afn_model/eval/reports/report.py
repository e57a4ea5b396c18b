"""The report of a run: scores.json and scored.jsonl for programs, report.md and a picture for people."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import afn_kernels
from afn_model.eval.loaders import is_copy
from afn_model.eval.reports import picture
from afn_model.eval.reports.doctor import other_files
from afn_model.eval.reports.scored import (
    BenchmarkResult,
    RuleResult,
    RunFacts,
    Scores,
    groups_of,
    labels,
    number,
    target,
    turned,
    verdict,
    why_not,
)
from afn_model.eval.reports.submission import write_submission
from afn_model.eval.running.run import SPENT, read_run
from afn_model.eval.table import BenchmarkRow
from afn_model.files import write_json, write_rows, write_text

VERSION = 1  # of scores.json
PICTURE = "report.png"
COPIES = (
    "**The numbers of {} are of synthetic rows in the benchmark's format and of no benchmark.** They say that the road "
    "from file to report works, and nothing of the model."
)


def run_facts(
    out: str | Path,
    rows: Sequence[BenchmarkRow],
    *,
    data: str | Path | None = None,
    unreadable: Mapping[str, str] | None = None,
    reader: str = "",
) -> RunFacts:
    """What a run's folder says of it.

    Args:
        out: the folder, with run.json.
        rows: of the table.
        data: the data folder; where it was when the run began if None.
        unreadable: recordings that could not be read.
        reader: the text model that answers from captions.
    """
    run, spent = read_run(out), list(_spent(Path(out) / SPENT))
    asking, place = run["asking"], str(data or run["data"])
    return RunFacts(
        asking=asking.as_json(),
        prompts={row.name: asking.prompt_of(row) for row in rows},
        data=place,
        limit=run["limit"],
        reader=reader,
        hours=sum(one["seconds"] for one in spent) / 3600,
        audio_hours=sum(one["audio_seconds"] for one in spent) / 3600,
        answers=sum(one["answers"] - one["errors"] for one in spent),
        code=code_version(),
        copies=frozenset(row.name for row in rows if is_copy(row, place)),
        other_files={row.name: found for row in rows if (found := other_files(row, place))},
        unreadable=dict(unreadable or {}),
    )


def _spent(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        with suppress(ValueError, TypeError):  # a torn line
            yield {"seconds": 0, "audio_seconds": 0, "answers": 0, "errors": 0} | json.loads(line)


def code_version() -> str:
    """The package's version, and in a git checkout its commit, with "+" where files differ from it."""
    root, found = Path(afn_kernels.__file__).parents[1], afn_kernels.__version__
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            told = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
            found += " " + subprocess.run(told, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    return found


def write_report(out: str | Path, scores: Scores, facts: RunFacts) -> Path:
    """Writes to a run's folder scores.json, scored.jsonl (a line for each item: what each scorer read in its answer and
    gave for it), report.md, where matplotlib is installed report.png, and the files that authors' scorers read.

    Returns:
        The path of report.md.

    Raises:
        ValueError: the disk is full, or the like.
    """
    try:
        return _write(Path(out), scores, facts)
    except OSError as error:
        what = f"no report was written ({error.strerror or error})"
        raise ValueError(f"{out}: {what}; the answers are kept, and afn bench score writes it") from None


def _write(out: Path, scores: Scores, facts: RunFacts) -> Path:
    written = dict[str, str]()
    for name, result in scores.benchmarks.items():
        with suppress(ValueError):  # a part of the items, or other ones
            if found := write_submission(result.row, result.answered, facts.data, out):
                written[name] = str(found[0].relative_to(out))
    facts, drawn = replace(facts, submissions=written), None
    with suppress(ValueError):  # without matplotlib
        drawn = picture.draw(out / PICTURE, scores, facts)
    write_json(out / "scores.json", as_json(scores, facts))
    write_rows(out / "scored.jsonl", _items(scores))
    write_text(out / "report.md", _unicode(markdown(scores, facts, PICTURE if drawn else "")))
    return out / "report.md"


def as_json(scores: Scores, facts: RunFacts) -> dict[str, Any]:
    """The content of scores.json: numbers that are not known are null."""
    found = {name: _benchmark(result, facts, scores) for name, result in scores.benchmarks.items()}
    return _known(
        {
            "version": VERSION,
            "complete": scores.complete,
            "code": facts.code,
            "asking": facts.asking,
            "limit": facts.limit,
            "hours": facts.hours,
            "audio_hours": facts.audio_hours,
            "answers": facts.answers,
            "judge": scores.tools.judge.name if scores.tools.judge else None,
            "embedder": scores.tools.embed_name or None,
            "reader": facts.reader or None,
            "benchmarks": found,
            "problems": dict(scores.problems),
            "unreadable": dict(facts.unreadable),
            "submissions": dict(facts.submissions),
        }
    )


def _benchmark(result: BenchmarkResult, facts: RunFacts, scores: Scores) -> dict[str, Any]:
    row, who = result.row, ("instruct", "think", "captioner", "af3", "other")
    groups = ["all", *groups_of(result)]
    targets = {one: {group: target(row, one, group) for group in groups} for one in who}
    return {
        "title": row.title,
        "row": row.row,
        "version": row.version,
        "split": row.split,
        "metric": row.metric,
        "lower_is_better": row.lower,
        "items": len(result.answered),
        "official_items": row.items,
        "errors": result.errors,
        "unasked": result.unasked,
        "hidden": result.hidden,
        "cut": {finish: result.ended(finish) for finish in ("length", "repetition")},
        "prompt": facts.prompts.get(row.name, row.prompt),
        "copy": row.name in facts.copies,
        "targets": {name: {k: v for k, v in found.items() if v == v} for name, found in targets.items()},
        "best_other": (row.targets.get("other") or {}).get("who"),
        "comparable": not why_not(result, facts, scores.tools),
        "why_not": why_not(result, facts, scores.tools),
        "verdict": verdict(result, facts, scores.tools),
        "disagreements": [{"scorers": [a, b], "difference": gap} for a, b, gap in result.disagreements()],
        "scorers": [_scorer(by, result, groups) for by in result.results],
    }


def _scorer(by: RuleResult, result: BenchmarkResult, groups: Sequence[str]) -> dict[str, Any]:
    score, orders = by.score, turned(result, by)
    told: dict[str, Any] = {"name": by.name, "rule": by.rule, "value": by.value}
    if score is None:
        return told | {"reason": by.reason}
    sub = {name: {"value": value, "n": n} for name, (value, n) in score.groups.items()}
    return told | {
        "n": score.n,
        "interval": by.interval,
        "range": by.bounds,
        "unparsed": score.unparsed,
        "signature": score.signature,
        "notes": score.notes,
        "ungraded": by.ungraded,
        "rotations": asdict(orders) if orders else None,
        "groups": sub,
        "shown": [name for name in groups if name in sub],
    }


def _items(scores: Scores) -> Iterator[dict[str, Any]]:
    for name, result in scores.benchmarks.items():
        for place, one in enumerate(result.answered):
            by = {}
            for found in result.results:
                if score := found.score:
                    by[found.name] = {"part": score.parts[place]}
                    if score.extracted:
                        by[found.name]["read"] = score.extracted[place]
            told = {"benchmark": name, "id": one.item.id, "answer": one.item.answer, "output": one.text}
            yield told | {"error": one.error, "finish": one.finish, "scorers": by}


def _known(value: Any) -> Any:
    """The value with None for every number that is not finite: JSON has none of these."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _unicode(value)
    if isinstance(value, Mapping):
        return {_unicode(str(name)): _known(one) for name, one in value.items()}
    return [_known(one) for one in value] if isinstance(value, (list, tuple)) else value


def _unicode(text: str) -> str:
    """A text that a file can hold: a benchmark's JSON may have halves of surrogate pairs."""
    return text.encode(errors="backslashreplace").decode()


def markdown(scores: Scores, facts: RunFacts, drawn: str = "") -> str:
    """The text of report.md; ``drawn`` is the name of a picture."""
    model = facts.asking.get("model", {})
    names = labels([result.row for result in scores.benchmarks.values()])
    lines = [f"# Evaluation: {model.get('name', 'a model')}, {facts.variant}", ""]
    if copies := [names[name] for name in scores.benchmarks if name in facts.copies]:
        what = "all benchmarks here" if len(copies) == len(scores.benchmarks) else ", ".join(copies)
        lines += [f"> {COPIES.format(what)}", ""]
    if not scores.answered:
        lines += ["> **Not every item has an answer**: scores are ranges until the run has gone on to its end.", ""]
    lines += [*_facts(scores, facts), "", "## Scores", "", *_overview(scores, facts, names), ""]
    lines += [f"![Scores beside the paper's numbers]({drawn})", ""] if drawn else []
    for name, result in scores.benchmarks.items():
        lines += [f"## {names[name]}", "", *_section(result, scores, facts), ""]
    if scores.problems:
        lines += ["## Not asked", ""] + [f"- {name}: {one_line(why)}" for name, why in scores.problems.items()] + [""]
    if facts.unreadable:
        lines += ["## Recordings that cannot be read", "", *_some(facts.unreadable), ""]
    return "\n".join(lines)


def _facts(scores: Scores, facts: RunFacts) -> list[str]:
    model, judge = facts.asking.get("model", {}), scores.tools.judge
    told = {
        "model": ", ".join(f"{name} {value}" for name, value in model.items()),
        "variant": facts.variant,
        "changed on purpose": facts.asking.get("ablation"),
        "settings in place of the table's": json.dumps(facts.asking.get("generation") or {}).strip("{}"),
        "only the first items of each": facts.limit,
        "judge": judge.name if judge else "none",
        "embedder": scores.tools.embed_name,
        "text model that answers from the captions": facts.reader,
        "code": facts.code,
        "time": f"{facts.hours:.2f} h of processes for {facts.answers:,} answers, {facts.audio_hours:.2f} h of audio",
    }
    return [f"- {name}: {value}" for name, value in told.items() if value]


def _overview(scores: Scores, facts: RunFacts, names: Mapping[str, str]) -> list[str]:
    head = "| benchmark | scored / official | metric | score | 95 % | strict | paper | difference | AF3 | best other "
    lines = [f"{head}| unparsed % | comparable |", "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for name, result in scores.benchmarks.items():
        row, first = result.row, result.first
        strict = next((by for by in result.results[1:] if by.name == "strict"), None)
        paper = target(row, facts.variant)
        cells = [
            names[name],
            f"{first.score.n if first.score else 0:,} / {'?' if row.items is None else f'{row.items:,}'}",
            f"{row.metric}{' ↓' if row.lower else ''}",
            ranged(first, row.metric),
            between(first.interval, row.metric),
            number(strict.value, row.metric) if strict else "",
            number(paper, row.metric),
            number(first.value - paper, row.metric, "+"),
            number(target(row, "af3"), row.metric),
            _best_other(row),
            number((strict or first).unparsed, "%"),
            "no" if why_not(result, facts, scores.tools) else "yes",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lower = " ↓: lower is better." if any(result.row.lower for result in scores.benchmarks.values()) else ""
    return [
        *lines,
        "",
        f"The score is the first scorer's of the sections below, by the rule that the paper names.{lower}",
    ]


def _section(result: BenchmarkResult, scores: Scores, facts: RunFacts) -> list[str]:
    row, groups = result.row, groups_of(result)
    version = f", version {row.version}" if row.version else ""
    lines = [f"`{row.name}`{version}, split {row.split}. {verdict(result, facts, scores.tools)}", ""]
    head = f"| {row.metric} | items | score | 95 % | unparsed | what it depends on |"
    lines += [head, "|---|---|---|---|---|---|"]
    for by in result.results:
        if by.score is None:
            lines.append(f"| {by.name} ({by.rule}) | | | | | not scored: {one_line(by.reason)} |")
            continue
        cells = [f"{by.score.n:,}", ranged(by, row.metric), between(by.interval, row.metric), f"{by.score.unparsed:,}"]
        lines.append(f"| {by.name} ({by.rule}) | {' | '.join(cells)} | {one_line(by.score.signature)} |")
    lines.append("")
    lines += [f"- **{a} and {b} differ by {number(gap, row.metric, '+')}.**" for a, b, gap in result.disagreements()]
    for by in result.results:
        if orders := turned(result, by):
            mean, worst, always = (number(x, row.metric) for x in (orders.mean, orders.worst, orders.always))
            told = f"mean {mean}, worst order {worst}, items at their worst {always}"
            lines.append(f"- {by.name}, over all orders of the options: {told}.")
        if by.ungraded:
            lines.append(f"- {by.name}: the judge gave {by.ungraded:,} answers no grade")
    told = {
        "the prompt is": facts.prompts.get(row.name, row.prompt),
        "answers cut by their length:": result.ended("length"),
        "answers that ended in repetition:": result.ended("repetition"),
        "errors:": result.errors,
        "not asked yet:": result.unasked,
        "items whose answer is hidden:": result.hidden,
        "file to hand in:": facts.submissions.get(row.name),
    }
    lines += [f"- {name} {value}" for name, value in told.items() if value]
    for why in sorted({one.error for one in result.answered if one.error})[:3]:
        lines.append(f"- an error: {one_line(why)}")
    lines += [
        f"- {note}"
        for note in dict.fromkeys([*row.notes, *(n for by in result.results if by.score for n in by.score.notes)])
    ]
    if groups:
        lines += ["", *_groups(result, facts, groups)]
    return lines


def _groups(result: BenchmarkResult, facts: RunFacts, groups: Sequence[str]) -> list[str]:
    row, some = result.row, [by for by in result.results if by.score]
    lines = [
        f"| sub-score | items | {' | '.join(by.name for by in some)} | paper | AF3 |",
        f"|---|---|{'---|' * len(some)}---|---|",
    ]
    for name in groups:
        items = max((by.score.groups.get(name, (0, 0))[1] for by in some if by.score), default=0)
        values = [number(by.of(name), row.metric) for by in some]
        papers = [number(target(row, who, name), row.metric) for who in (facts.variant, "af3")]
        lines.append(f"| {one_line(name)} | {items:,} | {' | '.join([*values, *papers])} |")
    return lines


def between(ends: tuple[float, float], metric: str) -> str:
    return f"{number(ends[0], metric)} to {number(ends[1], metric)}" if math.isfinite(ends[0]) else ""


def ranged(by: RuleResult, metric: str) -> str:
    """A score, or the range that errors leave to it."""
    if by.bounds is None or not by.score or not by.score.n:
        return number(by.value, metric)
    wrong, without = (number(value, metric) or "?" for value in by.bounds)
    return f"{wrong} (errors wrong) to {without} (left out)"


def _best_other(row: BenchmarkRow) -> str:
    value = number(target(row, "other"), row.metric)
    return f"{value} {row.targets['other'].get('who', '')}".strip() if value else ""


def one_line(text: str) -> str:
    """A text as a cell of a table holds it."""
    return " ".join(text.split()).replace("|", "\\|")


def _some(found: Mapping[str, str], most: int = 20) -> list[str]:
    lines = [f"- {one_line(path)}: {one_line(why)}" for path, why in list(found.items())[:most]]
    return [*lines, f"- and {len(found) - most:,} more"] if len(found) > most else lines
