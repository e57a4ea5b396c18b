"""Whether runs of curation end with the same bytes: killed, on more workers, by another executor.

    python -m bench.curation_run --out bench/results/curation/curation_run.jsonl [--kills 20] [--limit 30]

Recordings of the synthetic world go through every stage of the plan demo.yaml, with a server that stands in for large
models and fails on schedule. A run in one process is compared, file by file below stages/ and export/, with one on two
workers that is killed (SIGKILL) at random moments and goes on each time, with one on two workers, and with one by Ray,
where it is installed. Beside the file that --out names is a table of the same name in Markdown.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from afn_model.cli.curate_demo import EVERY, make_world, write_plan
from afn_model.cli.curate_trials import RunTrials
from afn_model.curate.stand_ins.server import RuleServer, answers_from, by_hash
from afn_model.files import write_rows, write_text
from afn_model.host import machine


def compared(runs: RunTrials, name: str, how: str, run: Callable[[], int]) -> dict[str, Any]:
    """A run beside the one that nothing happened to."""
    began = time.monotonic()
    kills = run()
    seconds, wrong = time.monotonic() - began, runs.differing(name)
    row = {"run": how, "kills": kills, "files": len(runs.files("whole")), "differ": len(wrong), "first": wrong[:3]}
    print(row, flush=True)
    return row | {"seconds": round(seconds, 1)}


def measured(folder: Path, kills: int, limit: int) -> list[dict[str, Any]]:
    """All comparisons."""
    world, found = folder / "world", list[dict[str, Any]]()
    make_world(world)
    answer = answers_from(str(world / "truth.jsonl"), folder / "runs" / "whole" / "recordings")
    with RuleServer(answer, faults=by_hash(EVERY)) as server:
        runs = RunTrials(write_plan(world, server.url), folder / "runs", limit, server, seed=1)
        began = time.monotonic()
        runs.whole()
        seconds = time.monotonic() - began

        def on(name: str, *more: str) -> Callable[[], int]:
            def ended() -> int:
                server.calls.clear()
                runs.ended(name, *more)
                return 0

            return ended

        found.append(compared(runs, "two", "two workers", on("two", "--workers", "2")))
        if find_spec("ray") is not None:
            found.append(compared(runs, "ray", "Ray, two workers", on("ray", "--executor", "ray", "--workers", "2")))
        each = 2.0 * seconds / kills
        killed = compared(
            runs, "killed", "killed, two workers", lambda: runs.killed("killed", kills, each, "--workers", "2")
        )
        found.append(killed)
    return [{"recordings": limit, "machine": machine(), **row} for row in found]


def table(rows: list[dict[str, Any]]) -> str:
    said = ["# Runs of curation, byte for byte", "", "Beside a run in one process that nothing happened to:", ""]
    said += ["| run | recordings | kills | files | that differ | seconds |", "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        cells = (row["recordings"], row["kills"], row["files"], row["differ"], row["seconds"])
        said.append(f"| {row['run']} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    return "\n".join(said) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--limit", type=int, default=30, help="recordings")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), args.kills, args.limit)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_rows(args.out, rows)
    write_text(args.out.with_suffix(".md"), table(rows))
    if wrong := [row["run"] for row in rows if row["differ"] or (row["run"].startswith("killed") and not row["kills"])]:
        raise SystemExit(f"not the same bytes: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
