"""The text of report.md: for a person who was not there when the model was asked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

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
from afn_model.eval.table import BenchmarkRow

COPIES = (
    "**The numbers of {} are of synthetic rows in the benchmark's format and of no benchmark.** They say that the road "
    "from file to report works, and nothing of the model."
)
LEGEND = {  # columns of the first table
    "scored / official": "items that count in the score, and those of the official split",
    "score": "by the rule that the paper's number is compared with, the first of each table below; where items have no "
    "answer, a range: these as wrong, and these left out",
    "95 %": "interval over drawn recordings",
    "strict": "by our own rule, which takes an answer that names no option as wrong",
    "AF3": "Audio Flamingo 3's number in the same paper",
    "unparsed": "answers in which no option, label or time could be read; they are wrong where no note says otherwise",
    "comparable": "whether the paper's number was found in the same way; if not, the section says why",
}
MOST = 20  # recordings that are named


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
    if scores.problems:
        lines += ["## Not asked", ""] + [f"- {name}: {one_line(why)}" for name, why in scores.problems.items()] + [""]
    if facts.unreadable:
        lines += ["## Recordings that cannot be read", "", *_some(facts.unreadable), ""]
    for _, some in groupby(scores.benchmarks.values(), lambda result: _family(result.row)):
        lines += [*_section(list(some), scores, facts, names), ""]
    return "\n".join(lines)


def _family(row: BenchmarkRow) -> tuple[object, ...]:
    """Rows that share a section: parts of one benchmark, measured by one metric."""
    return row.row, row.name.partition("-")[0], row.metric


def _facts(scores: Scores, facts: RunFacts) -> list[str]:
    model, judge = facts.asking.get("model", {}), scores.tools.judge
    audio = f", {duration(facts.audio_hours)} of audio" if facts.audio_hours else ""
    told = {
        "model": ", ".join(f"{name} {value}" for name, value in model.items()),
        "variant": facts.variant,
        "changed on purpose": facts.asking.get("ablation"),
        "settings in place of the table's": json.dumps(facts.asking.get("generation") or {}).strip("{}"),
        "only the first items of each": facts.limit,
        "judge": judge.name or "without a reply" if judge else "none",
        "embedder": scores.tools.embed_name,
        "text model that answers from the captions": facts.reader,
        "code": facts.code,
        "asked": f"{facts.answers:,} answers in {duration(facts.hours)} of all processes together{audio}",
    }
    return [f"- {name}: {value}" for name, value in told.items() if value]


def _overview(scores: Scores, facts: RunFacts, names: Mapping[str, str]) -> list[str]:
    head = ["benchmark", "scored / official", "metric", "score", "95 %", "strict", "paper", "difference", "AF3"]
    rows = []
    for name, result in scores.benchmarks.items():
        row, first = result.row, result.first
        strict = next((by for by in result.results[1:] if by.name == "strict"), None)
        paper = target(row, facts.variant)
        rows.append(
            [
                names[name],
                f"{first.score.n if first.score else 0:,} / {'?' if row.items is None else f'{row.items:,}'}",
                f"{row.metric}{' ↓' if row.lower else ''}",
                ranged(first, row.metric),
                between(first.interval, row.metric),
                number(strict.value, row.metric) if strict else "",
                number(paper, row.metric),
                "" if name in facts.copies else number(first.value - paper, row.metric, "+"),
                number(target(row, "af3"), row.metric),
                _best_other(row),
                f"{(strict or first).unparsed:.0f} %" if (strict or first).unparsed > 0 else "",
                "no" if why_not(result, facts, scores.tools) else "yes",
            ]
        )
    table = _table([*head, "best other", "unparsed", "comparable"], rows)
    legend = [f"- {column}: {told}" for column, told in LEGEND.items() if f" {column} |" in table[0]]
    lower = ["- ↓: lower is better"] if any(result.row.lower for result in scores.benchmarks.values()) else []
    return [*table, "", *legend, *lower]


def _section(some: Sequence[BenchmarkResult], scores: Scores, facts: RunFacts, names: Mapping[str, str]) -> list[str]:
    """What there is to say of a benchmark, of all its parts together: what holds for all of them is said once."""
    several, first = len(some) > 1, some[0].row
    lines = [f"## {', '.join(names[one.row.name] for one in some) if len(some) < 4 else first.title}", ""]
    for origin, same in groupby(some, lambda one: _origin(one, facts)):
        lines.append(f"{', '.join(f'`{one.row.name}`' for one in same)}: {origin}.")
    lines += [*_by_part([(one.row.name, [verdict(one, facts, scores.tools)]) for one in some]), ""]
    head, rows = ["part", first.metric, "items", "score", "95 %", "unparsed", "rule and version"], []
    for one in some:
        rows += [[one.row.name if several else "", *_scorer(by, one.row.metric)] for by in one.results]
    lines += _table(head, rows)
    if notes := _by_part([(one.row.name, list(_notes(one, facts))) for one in some]):
        lines += ["", *(f"- {note}" for note in notes)]
    for one in some:
        if groups := groups_of(one):
            lines += ["", *_groups(one, facts, groups, several)]
    return lines


def _origin(result: BenchmarkResult, facts: RunFacts) -> str:
    row = result.row
    version = f"version {row.version}, " if row.version else ""
    return f"{version}split {row.split}, prompt `{facts.prompts.get(row.name, row.prompt)}`"


def _scorer(by: RuleResult, metric: str) -> list[str]:
    if by.score is None:
        return [by.name, "", "", "", "", f"no number: {one_line(by.reason)}"]
    unparsed = f"{by.score.unparsed:,}" if by.score.unparsed else ""
    numbers = [f"{by.score.n:,}", ranged(by, metric), between(by.interval, metric), unparsed]
    return [by.name, *numbers, one_line(by.score.signature)]


def _notes(result: BenchmarkResult, facts: RunFacts) -> Iterator[str]:
    row, first = result.row, result.first
    if gaps := result.disagreements():
        found = ", ".join(f"{other} {number(gap, row.metric, '+')}" for _, other, gap in gaps)
        yield f"**More than a point from {first.name}: {found}.**"
    for by in result.results:
        if orders := turned(result, by):
            mean, worst, always = (number(x, row.metric) for x in (orders.mean, orders.worst, orders.always))
            told = f"mean {mean}, worst order {worst}, items at their worst {always}"
            yield f"{by.name}, over all orders of the options: {told}"
        if by.ungraded:
            yield f"{by.name}: the judge gave {by.ungraded:,} answers no grade"
    told = {
        "answers cut by their length": result.ended("length"),
        "answers that ended in repetition": result.ended("repetition"),
        "errors": result.errors,
        "not asked yet": result.unasked,
        "items whose answer is hidden": result.hidden,
        "answers in the form that the authors' scorer reads": facts.submissions.get(row.name),
    }
    yield from (f"{name}: {value}" for name, value in told.items() if value)
    for why in sorted({one.error for one in result.answered if one.error})[:3]:
        yield f"an error: {one_line(why)}"
    yield from row.notes
    yield from _by_part([(by.name, by.score.notes) for by in result.results if by.score])


def _by_part(told: Sequence[tuple[str, Iterable[str]]]) -> list[str]:
    """Notes of several parts, or scorers: what all of them have once, what some have with their names before it."""
    who: dict[str, list[str]] = {}
    for name, notes in told:
        for note in dict.fromkeys(notes):
            who.setdefault(note, []).append(name)
    return [note if len(names) == len(told) else f"{', '.join(names)}: {note}" for note, names in who.items()]


def _groups(result: BenchmarkResult, facts: RunFacts, groups: Sequence[str], several: bool) -> list[str]:
    row, some, rows = result.row, [by for by in result.results if by.score], []
    for name in groups:
        items = max((by.score.groups.get(name, (0, 0))[1] for by in some if by.score), default=0)
        values = [number(by.of(name), row.metric) for by in some]
        papers = [number(target(row, who, name), row.metric) for who in (facts.variant, "af3")]
        rows.append([one_line(name), f"{items:,}", *values, *papers])
    return _table([row.name if several else "sub-score", "items", *(by.name for by in some), "paper", "AF3"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table without its empty columns."""
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    lines = [[head[place] for place in kept], *([row[place] for place in kept] for row in rows)]
    texts = [f"| {' | '.join(cells)} |" for cells in lines]
    return [texts[0], "|" + "---|" * len(kept), *texts[1:]]


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


def duration(hours: float) -> str:
    """Hours as people say them: "3.2 h", "12 min", "9 s"."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{max(1, round(3600 * hours))} s"


def one_line(text: str) -> str:
    """A text as a cell of a table holds it."""
    return " ".join(text.split()).replace("|", "\\|")


def _some(found: Mapping[str, str]) -> list[str]:
    lines = [f"- {one_line(path)}: {one_line(why)}" for path, why in list(found.items())[:MOST]]
    return [*lines, f"- and {len(found) - MOST:,} more"] if len(found) > MOST else lines
