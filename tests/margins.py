"""How much of its budget every numeric test uses, over instruction sets, threads and seeds; nothing may use over 0.7.

    python -m tests.margins [--again] [--quick] [--seeds 5] [--out margins.jsonl] [--tests FILE ...]

A run is the tests marked ``numeric`` and not ``slow`` (tests/conftest.py) for one ``ATEN_CPU_CAPABILITY``, one
``OMP_NUM_THREADS`` and one ``--seed``. Writes a line per test, and a table beside them. Ends with 1 where a test used
more than 0.7 of a budget, failed, or did not come to an end. A run takes every second test, the others with the next
seed and with the other number of threads: two minutes instead of four.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from afn_model.host import machine
from tests.budget import NOTES

ROOT = Path(__file__).parents[1]
MOST = 0.7  # of a budget that any check may use
WIDE = 0.01  # a test that never uses more has a budget that says little
CAPABILITIES = ("default", "avx2", "avx512")
LIMIT = 1200  # seconds that a run may take


@dataclass(frozen=True)
class MarginsRun:
    """One pass over the numeric tests, and what came of it."""

    capability: str
    threads: int
    seed: int
    parts: int = 1
    seconds: float = 0.0
    failed: tuple[str, ...] = ()
    notes: tuple[dict, ...] = ()

    def __str__(self) -> str:
        return f"{self.capability}, {self.threads} thread{'s' * (self.threads > 1)}, seed {self.seed}"


def capabilities() -> tuple[str, ...]:
    """Those of the processor, slowest first."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    return CAPABILITIES[: CAPABILITIES.index(best) + 1] if best in CAPABILITIES else (best,)


def measured(run: MarginsRun, tests: list[str]) -> MarginsRun:
    """Runs the tests in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "notes.jsonl"
        file.touch()
        env = os.environ | {"ATEN_CPU_CAPABILITY": run.capability, "OMP_NUM_THREADS": str(run.threads)}
        part = f"{(run.seed + run.threads) % run.parts}/{run.parts}"
        chosen = ["-m", "numeric and not slow", "--seed", str(run.seed), "--part", part, *tests]
        quiet = ["-o", "addopts=", "-p", "no:cacheprovider", "-q", "-rfE", "--tb=no", "--no-header"]
        command = [sys.executable, "-m", "pytest", *quiet, *chosen]
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=env | {NOTES: str(file)}, capture_output=True, text=True, timeout=LIMIT
            )
            said = done.stdout.splitlines()
            failed = tuple(line for line in said if line.startswith(("FAILED ", "ERROR ")))
            if done.returncode not in (0, 1) or (done.returncode and not failed):
                failed = (*failed, f"ended with {done.returncode}: {' '.join((said + done.stderr.splitlines())[-3:])}")
        except subprocess.TimeoutExpired:
            failed = (f"no end after {LIMIT} s",)
        notes = tuple(json.loads(line) for line in file.read_text().splitlines())
    return replace(run, seconds=time.perf_counter() - start, failed=failed, notes=notes)


def measure(runs: list[MarginsRun], tests: list[str]) -> list[MarginsRun]:
    """All runs; those of one thread as many at a time as there are two cores for."""
    done = []
    for threads, some in itertools.groupby(sorted(runs, key=lambda run: run.threads), lambda run: run.threads):
        with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1) // threads)) as pool:
            for run in pool.map(lambda run: measured(run, tests), some):
                worst = max((note["used"] for note in run.notes), default=0.0)
                print(f"{run}: {run.seconds:.0f} s, {len(run.notes)} checks, worst {worst:.2f}", flush=True)
                print("".join(f"  {line}\n" for line in run.failed), end="", flush=True)
                done.append(run)
    return done


def by_test(runs: list[MarginsRun]) -> list[dict]:
    """A record for every test, the one that used most of a budget first."""
    found = defaultdict(list)
    for run in runs:
        for note in run.notes:
            found[note["test"]].append((note["used"], note["of"], str(run)))
    records = []
    for test, checks in found.items():
        used, of, run = max(checks)
        mean = sum(used for used, _, _ in checks) / len(checks)
        records.append(
            {
                "test": test,
                "checks": len(checks),
                "mean": float(f"{mean:.3g}"),
                "worst": float(f"{used:.3g}"),
                "of": of,
                "run": run,
            }
        )
    return sorted(records, key=lambda record: -record["worst"])


def header(runs: list[MarginsRun]) -> str:
    capabilities = ", ".join(dict.fromkeys(run.capability for run in runs))
    threads = " and ".join(str(x) for x in dict.fromkeys(run.threads for run in runs))
    seeds, longest, failed = (
        len({run.seed for run in runs}),
        max(run.seconds for run in runs),
        sum(len(run.failed) for run in runs),
    )
    return (
        f"{len(runs)} runs: {capabilities}; {threads} threads; {seeds} seeds; longest {longest:.0f} s; failed: {failed}"
    )


def table(records: list[dict]) -> str:
    """In Markdown: test functions with all of their cases together, then the tests whose budgets say little."""
    functions = defaultdict(list)
    for record in records:
        functions[record["test"].partition("[")[0]].append(record)
    measured_at = Counter((record["commit"], record["date"][:10], record["header"]) for record in records)
    lines = ["# Error ÷ budget of every numeric test", ""]
    for number, ((commit, date, text), count) in enumerate(measured_at.most_common()):
        lines.append(f"{'Measured again, after a change: ' * (number > 0)}{count} tests at {commit}, {date}. {text}.\n")
    lines += [
        f"On {records[0]['machine']} with {records[0]['cores']} cores, torch {records[0]['torch']}. Written by "
        "`python -m tests.margins`.",
        "",
        f"Above {MOST}: {sum(record['worst'] > MOST for record in records)} of {len(records)} tests.",
        "",
        "| test | cases | checks | mean | worst | worst of all in |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for function, cases in functions.items():
        checks = sum(case["checks"] for case in cases)
        mean = sum(case["checks"] * case["mean"] for case in cases) / checks
        case = cases[0]["test"].partition("[")[2].removesuffix("]")
        at = ", ".join(x for x in (case, cases[0]["of"], cases[0]["run"]) if x).replace("|", "\\|")
        lines.append(f"| {function} | {len(cases)} | {checks} | {mean:.3f} | {cases[0]['worst']:.3f} | {at} |")
    wide = [function for function, cases in functions.items() if cases[0]["worst"] <= WIDE]
    lines += ["", f"Never above {WIDE}: {', '.join(wide) or 'none'}.", ""]
    return "\n".join(lines)


def commit() -> str:
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parts", type=int, default=2, help="a run takes one of so many parts of the tests")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/cpu/margins.jsonl")
    parser.add_argument("--again", action="store_true", help=f"only what the file has above {MOST}, in its place")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files or folders")
    args = parser.parse_args()
    old = [json.loads(line) for line in args.out.read_text().splitlines()] if args.again else []
    above = sorted({row["test"].partition("[")[0] for row in old if row["worst"] > MOST})
    seeds = range(1 if args.quick else args.seeds)
    runs = [MarginsRun(*each, args.parts) for each in itertools.product(capabilities(), (1, 2), seeds)]
    runs = measure(runs, above or args.tests)
    where = machine("cpu") | {"commit": commit(), "header": header(runs)}
    kept = [row for row in old if row["test"].partition("[")[0] not in above]
    records = sorted([*kept, *({**row, **where} for row in by_test(runs))], key=lambda row: -row["worst"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = table(records)
    args.out.with_suffix(".md").write_text(text)
    print(text)
    above = [record["test"] for record in records if record["worst"] > MOST]
    sys.exit(bool(above or not records or any(run.failed for run in runs)))


if __name__ == "__main__":
    main()
