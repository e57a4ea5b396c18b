"""What ``python -m tests.versions`` found: JSON lines, and the table of them in Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from afn_model.files import write_rows, write_text

ROOT = Path(__file__).parents[2]
RESULTS, DOCUMENT = ROOT / "bench/results/cpu/versions.jsonl", ROOT / "docs/versions.md"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PACKAGES = ("torch", "triton", "numpy", "transformers")
BEGIN, END = "<!-- make test-versions writes this table -->", "<!-- end -->"


def read() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def write(rows: list[dict]) -> None:
    """The rows, their table beside them and in docs/versions.md."""
    write_rows(RESULTS, rows)
    write_text(RESULTS.with_suffix(".md"), f"# Versions\n\n{table(rows)}")
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    write_text(DOCUMENT, f"{before}{BEGIN}\n{table(rows)}{END}{rest.partition(END)[2]}")


def table(rows: list[dict]) -> str:
    """A line for each environment, then the reason of whatever did not pass or has a note, then what was not tried."""
    out = [
        f"| set | Python | {' | '.join(PACKAGES)} | passed | failed | skipped | date |",
        "|---" * (6 + len(PACKAGES)) + "|",
    ]
    for row in rows:
        versions = " | ".join(row["versions"].get(name) or "–" for name in PACKAGES)
        counts = f"{row['passed']} | {row['failed']} | {row['skipped']}"
        out.append(f"| {row['set']} | {row['python']} | {versions} | {counts} | {row['date'][:10]} |")
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for one in row["reasons"]:
            where = (f"{row['set']}, Python {row['python']}", one["outcome"], one["reason"])
            reasons.setdefault(where, []).append(one["test"])
    out += ["", *(f"- {where}: {what} {', '.join(tests)}: {why}" for (where, what, why), tests in reasons.items())]
    tried = {".".join(row["python"].split(".")[:2]) for row in rows}
    missing = [python for python in PYTHONS if python not in tried]
    if missing:
        out.append(f"- Not tried: Python {', '.join(missing)}.")
    return "\n".join(out).rstrip() + "\n"
