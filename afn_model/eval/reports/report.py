"""The report of a run: scores.json and scored.jsonl for programs, report.md and a picture for people."""

from __future__ import annotations

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
from afn_model.eval.reports.markdown import markdown
from afn_model.eval.reports.scored import (
    BenchmarkResult,
    RuleResult,
    RunFacts,
    Scores,
    groups_of,
    target,
    turned,
    verdict,
    why_not,
)
from afn_model.eval.reports.submission import write_submission
from afn_model.eval.running.run import SPENT, read_run
from afn_model.eval.table import BenchmarkRow
from afn_model.files import appended_rows, write_json, write_rows, write_text

VERSION = 1  # of scores.json
PICTURE = "report.png"


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
    nothing = {"seconds": 0, "audio_seconds": 0, "answers": 0, "errors": 0}
    spent = [nothing | row for row in appended_rows(Path(out) / SPENT) if isinstance(row, dict)]
    run = read_run(out)
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
