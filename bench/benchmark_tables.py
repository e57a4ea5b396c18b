"""The tables of docs/evaluation.md from the rows of afn_model/eval/benchmarks.

python -m bench.benchmark_tables
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from afn_model.eval.reports.scored import labels, target
from afn_model.eval.table import VARIANTS, BenchmarkRow, benchmarks
from afn_model.files import write_text

DOCUMENT = Path(__file__).parents[1] / "docs/evaluation.md"
BEGIN, END = "<!-- {}: python -m bench.benchmark_tables -->", "<!-- end of {} -->"


def numbers(rows: Sequence[BenchmarkRow]) -> str:
    """The paper's rows and its numbers, and what keeps a number from being comparable with them."""
    head = "row | benchmark | `--suite` | items | metric | Instruct / Think / Captioner | AF3 | best other | comparable"
    names = labels(rows)
    return _table(
        head,
        [
            [
                str(row.row),
                names[row.name],
                f"`{row.name}`",
                "?" if row.items is None else f"{row.items:,}",
                f"{row.metric}{' ↓' if row.lower else ''}",
                " / ".join(_number(row, who) or "–" for who in VARIANTS),
                _number(row, "af3"),
                f"{_number(row, 'other')} {row.targets.get('other', {}).get('who', '')}".strip(),
                _comparable(row),
            ]
            for row in rows
        ],
    )


def sources(rows: Sequence[BenchmarkRow]) -> str:
    """Where the files of each row are and under what licence; the parts of a benchmark stand together."""
    stems = Counter(row.name.partition("-")[0] for row in rows)
    found: dict[tuple[str, str], list[BenchmarkRow]] = {}
    for row in rows:
        stem = row.name.partition("-")[0]
        found.setdefault((stem if stems[stem] > 1 else row.where, row.licence), []).append(row)
    lines = []
    for (_, licence), some in found.items():
        where = dict.fromkeys(escape(row.where, quote=False) for row in some)
        lines.append([", ".join(f"`{row.name}`" for row in some), "<br>".join(where), licence])
    return _table("rows | files | licence", lines)


def _number(row: BenchmarkRow, who: str) -> str:
    """The paper's number; where it has sub-scores alone, these."""
    told, names = row.targets.get(who), []
    whole = target(row, who)
    if math.isfinite(whole):
        return f"{whole:g}"
    if isinstance(told, dict):
        told = told.get("value", told) if who == "other" else told
        names = [name for name in told if name != "all"] if isinstance(told, dict) else []
    return ", ".join(f"{target(row, who, name):g} {name.partition(': ')[2]}" for name in names)


def _comparable(row: BenchmarkRow) -> str:
    """What a row needs, or why its number is none of the paper's, whatever is done."""
    if not any(_number(row, who) for who in VARIANTS):
        return "the paper has no number"
    why = ["the files are not public"] if row.private else []
    why += ["the judge's prompt"] if row.scorers[0]["rule"] == "judge" and not row.unknown else []
    why += row.unknown
    needs = [f"with the judge {row.judge}"] if row.judge else []
    needs += ["when the answers are handed in"] if row.hidden else []
    return f"no: {'; '.join(why)}" if why else f"yes, {', '.join(needs)}" if needs else "yes"


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def written(text: str) -> str:
    """The document's text with its tables as they are now."""
    rows = [row for row in benchmarks().values() if "paper" in row.suites and row.row is not None]
    beyond = [row for row in benchmarks().values() if "beyond" in row.suites]
    for name, table in (("numbers", numbers(rows)), ("files", sources([*rows, *beyond]))):
        before, _, rest = text.partition(BEGIN.format(name))
        after = rest.partition(END.format(name))[2]
        text = f"{before}{BEGIN.format(name)}\n\n{table}\n\n{END.format(name)}{after}"
    return text


if __name__ == "__main__":
    write_text(DOCUMENT, written(DOCUMENT.read_text("utf-8")))
