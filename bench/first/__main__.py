"""python -m bench.first: runs the plan, or prints it."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
from pathlib import Path

from bench.first import plan, report
from bench.first.runner import Journal, Runner

HERE = Path(__file__).parents[2]
SLOW = 6.0  # limits of a rehearsal: two cores instead of sixteen


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.first", description=__doc__)
    parser.add_argument("--plan", action="store_true", help="print the plan and the sum of its limits")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/first"), help="folder of first.jsonl, .md, .log, pictures"
    )
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at toy shapes; compile the real ones")
    parser.add_argument(
        "--total", type=float, help=f"seconds for all of it; {plan.TOTAL}, of a rehearsal without limit"
    )
    parser.add_argument("--phases", default="", metavar="A,B", help="these alone, by name")
    parser.add_argument("--steps", default="", metavar="A,B", help="these alone, by name")
    parser.add_argument("--workers", type=int, default=0, help="processes at a time; 0 is the plan's, of a rehearsal 2")
    return parser


def environment(folder: Path, device: str) -> dict[str, str]:
    """Of every step: nothing is looked up or kept outside of the checkout."""
    found = {
        "FIRST_DEVICE": device, "FIRST_FOLDER": str(folder.resolve()), "AFN_VERDICTS": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
    }  # fmt: skip
    kept = HERE / "build" / "first"
    return found | {"TRITON_CACHE_DIR": str(kept / "triton"), "AFN_CACHE": str(kept / "cache")}


def selected(phases: tuple[plan.Phase, ...], names: str, steps: str) -> list[plan.Phase]:
    """The phases and steps of these names, all where there are none."""
    wanted, single = set(filter(None, names.split(","))), set(filter(None, steps.split(",")))
    if unknown := wanted - {x.name for x in phases}:
        raise SystemExit(f"no phase {', '.join(sorted(unknown))}; there are {', '.join(x.name for x in phases)}")
    if unknown := single - {one.name for x in phases for one in x.steps}:
        raise SystemExit(f"no step {', '.join(sorted(unknown))}; --plan shows those there are")
    kept = [x for x in phases if not wanted or x.name in wanted]
    if not single:
        return kept
    cut = [plan.replace(x, steps=tuple(one for one in x.steps if one.name in single)) for x in kept]
    return [x for x in cut if x.steps]


def no_gpu() -> str:
    """Why the driver finds no GPU, without the seconds that PyTorch takes to say so; empty when it finds one."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no driver"
    if code := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"its driver ends with {code}"
    return "" if count.value else "its driver finds none"


def main(words: list[str] | None = None) -> int:
    """0 where every step came to its end and nothing is wrong, else 1."""
    options = arguments().parse_args(words)
    phases = plan.rehearsal() if options.rehearse else plan.plan()
    if options.plan:
        print(plan.text(phases))
        return 0
    device = "cpu" if options.rehearse else "cuda"
    if device == "cuda" and (why := no_gpu()):
        print(f"gpu-first: no GPU is here ({why}); REHEARSE=1 needs none", file=sys.stderr)
        return 2
    journal = Journal(options.out, {"rehearsal": "on a CPU: no GPU has run this"} if options.rehearse else None)
    total = options.total or (float("inf") if options.rehearse else plan.TOTAL)
    workers = options.workers or (2 if options.rehearse else 0)
    with tempfile.TemporaryDirectory() as folder:
        shared = environment(options.out, device) | {"FIRST_LOCK": f"{folder}/lock"}
        runner = Runner(journal, total, shared, workers, SLOW if options.rehearse else 1.0)
        runner.run(selected(phases, options.phases, options.steps))
    journal.close()
    bad = report.write(options.out)
    print(options.out / "first.md")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
