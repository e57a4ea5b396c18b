"""python -m afn_kernels.verify: what ``afn doctor --verify`` runs; with --json one line for every check, at once."""

from __future__ import annotations

import argparse
import json
import sys

import torch

from afn_kernels.verify import defaults, keep, processes, run, unknown
from afn_kernels.verify.report import Report
from afn_kernels.verify.shapes import SIZES


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m afn_kernels.verify", description=__doc__)
    parser.add_argument("--ops", type=named, metavar="A,B", help="default all")
    parser.add_argument("--impl", type=named, metavar="A,B", help="implementations; default all")
    parser.add_argument("--size", choices=SIZES, help="default full on a GPU, toy on a CPU")
    parser.add_argument("--device", type=torch.device, help="default the current GPU, else the CPU")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--no-time", action="store_true", help="results alone")
    parser.add_argument("--only-time", action="store_true", help="times alone")
    parser.add_argument("--no-file", action="store_true", help="keep nothing for impl='auto'")
    parser.add_argument("--here", action="store_true", help="all in this process")
    parser.add_argument(
        "--start", type=int, default=0, metavar="N", help="with --here: the first of the selected checks"
    )
    parser.add_argument("--skip", type=named, default=[], metavar="OP:IMPL,…", help="with --here: leave these out")
    parser.add_argument(
        "--announce", action="store_true", help="with --here: a line before each check too, and a last one"
    )
    parser.add_argument("--limit", type=float, default=processes.LIMIT, help="seconds for one check in its own process")
    parser.add_argument("--json", action="store_true", help="a line of JSON for every check as soon as it is known")
    return parser


def named(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main() -> int:
    """0, 1 where something failed, 2 for bad arguments, 3 where the GPU's context was lost."""
    options = arguments().parse_args()
    device, size, isolated = defaults(options.device, options.size, False if options.here else None)
    if wrong := unknown(options.ops, options.impl):
        print(wrong, file=sys.stderr)
        return 2
    if isolated:
        found = processes.rows(
            size, device, ops=options.ops, impls=options.impl, seed=options.seed,
            time_them=not options.no_time, limit=options.limit,
        )  # fmt: skip
    else:
        skip = {tuple(pair.split(":", 1)) for pair in options.skip}
        found = run.rows(
            size, device, ops=options.ops, impls=options.impl, seed=options.seed, start=options.start, skip=skip,
            check=not options.only_time, time_them=not options.no_time, say=say if options.announce else None,
        )  # fmt: skip
    rows, lost = [], False
    try:
        for row in found:
            rows.append(row)
            if options.json:
                say(row)
    except run.DeviceLost:
        lost = True
    report = Report(str(device), size, tuple(run.ordered(rows)))
    if not options.no_file:
        keep(device, rows)
    if not options.json:
        print(report)
    if lost:
        return processes.LOST
    if options.announce:
        say({"status": "over"})
    return 1 if report.failed else 0


def say(row: dict) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
