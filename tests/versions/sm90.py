"""The first workload of every op compiled for an H100: kernels and their spills, or the error, as JSON.

python -m tests.versions.sm90 kernels.json
"""

import json
import sys
from pathlib import Path

from bench.ops import Workload, workloads
from bench.sm90.launches import has, launched
from bench.sm90.machine import binary


def spills(work: Workload) -> dict[str, int] | str:
    try:
        return {launch.name: binary(launch.compiled).spills for launch in launched(work)}
    except Exception as error:  # of whatever compiler is here
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def main(out: Path) -> None:
    first = {work.op: work for work in reversed(workloads()) if has(work.op, "triton")}
    out.write_text(json.dumps({op: spills(work) for op, work in first.items()}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
