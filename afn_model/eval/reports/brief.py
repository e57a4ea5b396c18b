"""What a terminal shows when a run has ended: a line for each benchmark, and what is missing and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from afn_model.eval.reports.scored import BenchmarkResult, RuleResult, RunFacts, Scores, number, target, why_not

COPIES = "Synthetic rows in the formats of the benchmarks: the numbers are of no benchmark."
SHOWN = 5  # names of benchmarks in a sentence


def brief(scores: Scores, facts: RunFacts, report: Path) -> list[str]:
    """Lines: a table of the scores, then a sentence for each thing that keeps them from being whole."""
    lines = [COPIES] if facts.copies else []
    if scores.benchmarks:
        lines += [*_table(scores, facts), ""]
    return [*lines, *_missing(scores, report.parent), f"Report: {report}"]


def _table(scores: Scores, facts: RunFacts) -> list[str]:
    found = [("benchmark", "scored", "metric", "here", "paper", "comparable")]
    for name, one in scores.benchmarks.items():
        metric, scored = one.row.metric, one.first.score
        found.append(
            (
                name,
                f"{scored.n:,}" if scored else "-",
                f"{metric} ↓" if one.row.lower else metric,
                _here(one.first, metric) or "-",
                number(target(one.row, facts.variant), metric) or "-",
                "no" if why_not(one, facts, scores.tools) else "yes",
            )
        )
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in found]


def _here(by: RuleResult, metric: str) -> str:
    """A score; where items have no output, its ends."""
    if by.bounds is None or not by.score or not by.score.n:
        return number(by.value, metric)
    return " to ".join(number(value, metric) or "?" for value in by.bounds)


def _missing(scores: Scores, out: Path) -> list[str]:
    lines = []
    if scores.problems:
        names = _names(list(scores.problems))
        lines.append(f"Not asked: {names}. afn bench doctor says what is missing and where to get it.")
    if unasked := sum(one.unasked for one in scores.benchmarks.values()):
        items = sum(len(one.answered) for one in scores.benchmarks.values())
        lines.append(f"{unasked:,} of {items:,} items are not asked yet: the same afn bench run goes on.")
    wrong = [(name, one) for name, one in scores.benchmarks.items() if one.errors]
    for name, one in wrong[:SHOWN]:
        why = " ".join(next(item.error for item in one.answered if item.error).split())
        lines.append(f"{name}: {one.errors:,} of {len(one.answered):,} items have an error, such as {why}")
    if len(wrong) > SHOWN:
        lines.append(f"{len(wrong) - SHOWN} more benchmarks have errors: the report names them.")
    for why, names in _without_number(scores.benchmarks).items():
        lines.append(f"No number for {_names(names)}: {why}.")
    if lost := unanswered(scores):
        why = getattr(scores.tools.judge, "last_failure", "") or "nobody knows why"
        lines.append(f"The judge did not reply to {lost:,} prompts: {why}. The same command asks it again.")
    if any(one.first.score is None for one in scores.benchmarks.values()):
        lines.append(f"afn bench score {out}, with what is missing, scores again and asks the model nothing.")
    return lines


def _without_number(benchmarks: Mapping[str, BenchmarkResult]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, one in benchmarks.items():
        if one.first.score is None:
            found.setdefault(one.first.reason.rstrip("."), []).append(name)
        elif one.hidden and not one.first.score.n:
            found.setdefault("the answers are hidden; submissions/ has the file to hand in", []).append(name)
    return found


def unanswered(scores: Scores) -> int:
    """Prompts that the judge did not reply to."""
    return getattr(scores.tools.judge, "failures", 0)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
