"""Every op at the shapes of AF-Next, ours against named peers, forward and forward + backward: JSON lines.

    python -m bench.run [--device cuda] [--only rms_norm] [--part 1/3]
        [--first] [--missing] [--limit 400] [--out bench/results/h200/ops.jsonl]
    python -m bench.run --only rms_norm --shape rows=4096,width=5120 --also my_ops.py:my_rms_norm=rms_norm

What computes the wrong thing is not timed. On a CPU, where Triton does not run, shapes are cut, and the record says so.
Records of the same workload in the file are replaced, all others stay.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from afn_model.files import write_rows
from afn_model.host import machine
from bench import measure
from bench.ops import Absent, Workload, workloads
from bench.own import beside, function
from bench.record import COLUMNS, PASSES, WHOSE, Bench, fitted, measured, why
from bench.shapes import asked


def key(record: dict) -> tuple:
    return tuple(record[name] for name in ("op", "workload", "pass", "variant"))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def save(path: Path, records: list[dict]) -> None:
    """Replaces what the file holds of the same workloads and passes; written whole or not at all."""
    new = {key(record)[:3] for record in records}
    kept = [record for record in read(path) if key(record)[:3] not in new] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, kept + records)


def line(record: dict) -> str:
    """A record in one line of text."""
    name = f"  {record['pass']:<17}{record['variant']:<16}"
    if record["absent"]:
        return f"{name}absent: {record['absent']}"
    parts = [f"{record['median_us']:>12,.1f} us"]
    parts += [f"{record['of_floor']:.2f} of floor"] if record["of_floor"] else []
    parts += [f"{record['ratio_to_best_peer']:.2f} x best peer"] if record["ratio_to_best_peer"] else []
    if chosen := record["chosen"]:
        parts.append(f"chose {chosen} ({WHOSE[chosen]})" if chosen in WHOSE else f"chose {chosen}")
    return name + "  ".join(parts)


def distinct(todo: list[Workload]) -> list[Workload]:
    """Without those that a CPU's shorter length makes the same call as one before."""
    found = {}
    for work in todo:
        try:
            cut, _ = fitted(work, "cpu")
        except Absent:
            found[str(work)] = work
            continue
        made = cut.make("meta", cut.dtype)
        signature = (work.op, str(work.options), *((name, x.shape, x.dtype) for name, x in made.items()))
        found.setdefault(signature, work)
    return list(found.values())


def measurable() -> list[str]:
    """The ops that have workloads."""
    return list(dict.fromkeys(work.op for work in workloads()))


def selected(only: Sequence[str], part: str) -> list[Workload]:
    """The workloads of the ops in ``only`` (all when empty); of "2/3" the second third of the ops."""
    number, parts = (int(x) for x in part.split("/"))
    ops = measurable()
    if unknown := set(only) - set(ops):
        raise SystemExit(f"no workloads for {', '.join(sorted(unknown))}; there are {', '.join(ops)}")
    if not 1 <= number <= parts:
        raise SystemExit(f"there is no part {part}")
    wanted = [op for op in ops if not only or op in only][number - 1 :: parts]
    return [work for work in workloads() if work.op in wanted]


def chosen(
    device: str, only: Sequence[str] = (), part: str = "1/1", shapes: Sequence[str] = (), also: Sequence[str] = ()
) -> list[Workload]:
    """The workloads of a command line: own shapes or those of AF-Next; with an op of one's own, of its op alone.

    Raises:
        ValueError: a shape or an op of one's own does not fit.
    """
    ops = measurable()
    works = selected(only or [function(text, ops)[0] for text in also], part)
    works = asked(shapes, [work.op for work in works]) if shapes else works
    works = beside(works, also, ops)
    return distinct(works) if device == "cpu" else works


def alive() -> bool:
    """Whether the GPU still answers: after an illegal access nothing in this process runs any more."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def failed(work: Workload, which: str, error: Exception) -> dict:
    """The record of a workload that ours could not run: it is in the file, with the reason, and without a time."""
    ours = {"op": work.op, "workload": work.name, "pass": which, "variant": "ours", "role": "ours"}
    return dict.fromkeys(COLUMNS) | ours | {"absent": why(error)}


def should_have_run(record: dict) -> bool:
    """Whether it has no time for a reason to look at: wrong; or one of ours, or one's own, stopped by an error."""
    reason, role = record["absent"] or "", record["role"]
    stopped = role != "peer" and reason.startswith("failed")
    return reason.startswith("wrong") or stopped or (role == "ours" and reason.startswith("out of memory"))


def run(todo: list[Workload], bench: Bench, out: Path, limit: float = math.inf) -> tuple[int, list[str]]:
    """Measures and saves one workload after the other, as long as there is time to begin one.

    Returns:
        How many have no time though they should, and the ops that are left because the GPU stopped answering.
    """
    common = machine(bench.device) | bench.reached()
    bad, start = 0, time.perf_counter()
    for number, work in enumerate(todo):
        if time.perf_counter() - start > limit:
            print(f"out of time ({limit:.0f} s) before:", *todo[number:], sep="\n  ", flush=True)
            return bad + len(todo) - number, []
        print(work, flush=True)
        for which in PASSES if work.wrt else PASSES[:1]:
            common |= {"load": round(os.getloadavg()[0], 1)}
            try:
                records = measured(work, which, bench)
            except Exception as error:
                records = [failed(work, which, error)]
            records = [record | common for record in records]
            save(out, records)
            print(*map(line, records), sep="\n", flush=True)
            bad += sum(map(should_have_run, records))
            if bench.device == "cuda":
                torch.cuda.empty_cache() if alive() else None
                if not alive():
                    ops = list(dict.fromkeys(other.op for other in todo))
                    return bad, ops[ops.index(work.op) + 1 :]
    return bad, []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", default=[], metavar="OP", help="ops; default all")
    parser.add_argument("--shape", action="append", default=[], help="own sizes: rows=4096,width=5120; may be repeated")
    parser.add_argument("--also", action="append", default=[], metavar="FILE.py:FUNCTION=OP", help="own op, as often")
    parser.add_argument("--part", default="1/1", help='"2/3" is the second third of the ops')
    parser.add_argument("--first", action="store_true", help="only the first workload of every op")
    parser.add_argument("--missing", action="store_true", help="only workloads that the file does not have")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no workload is begun")
    parser.add_argument(
        "--out",
        type=Path,
        help="default: ops.jsonl in bench/results/<machine>; of own shapes and ops in runs/bench/own",
    )
    parser.add_argument("--rounds", type=int, default=20, help="samples of each implementation")
    parser.add_argument("--budget", type=float, help="seconds for the rounds of one workload and pass")
    parser.add_argument("--keep-caches", action="store_true", help="compile only what no run before has compiled")
    args = parser.parse_args(arguments)
    start = time.perf_counter()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here")
    own = Path("runs/bench/own") if args.shape or args.also else measure.results(args.device)
    out = args.out or own / "ops.jsonl"
    budget = args.budget or (4.0 if args.device == "cuda" else 1.0)
    try:
        todo = chosen(args.device, args.only, args.part, args.shape, args.also)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if args.first:
        todo = list({work.op: work for work in reversed(todo)}.values())[::-1]
    if args.missing and out.exists():
        there = {key(record)[:2] for record in read(out)}
        todo = [work for work in todo if (work.op, work.name) not in there]
    warnings.simplefilter("ignore", UserWarning)  # torch.compile's, about peers
    with tempfile.TemporaryDirectory() as caches:  # a first call compiles, whatever ran here before
        if not args.keep_caches:
            os.environ |= {"TRITON_CACHE_DIR": f"{caches}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
        bench = Bench.of(args.device, rounds=args.rounds, budget=budget)
        print({"device": args.device} | bench.reached(), flush=True)
        bad, left = run(todo, bench, out, args.limit)
    print(f"{len(todo)} workloads in {time.perf_counter() - start:.0f} s, {bad} wrong or failed, without a time; {out}")
    if left:  # a fault on the GPU ends its process, not the measurement of the other ops
        here = [sys.executable, "-m", "bench.run", "--device", args.device, "--out", str(out)]
        limit = args.limit - (time.perf_counter() - start)
        here += ["--keep-caches"] if args.keep_caches else []
        here += [
            word for option in ("shape", "also") for text in getattr(args, option) for word in (f"--{option}", text)
        ]
        rest = [*here, "--rounds", str(args.rounds), "--budget", str(budget), "--limit", str(limit), "--only", *left]
        return subprocess.run(rest, check=False).returncode or 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
