"""Which tests take long: the list that `make test-fast` leaves out, from the durations that pytest printed.

    python -m pytest -n 2 --durations=0 --durations-min=0.25 > runs/durations.txt
    python -m tests.long runs/durations.txt

Writes tests/long.txt: functions whose cases take over ``MOST`` seconds together. ``slow`` marks what takes long by its
nature (processes of its own, compilers); this list is of what a change of the suite has made long.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

FILE = Path(__file__).with_name("long.txt")
MOST = 1.5
DAILY = {"tests/kernels/test_every_op.py::test_within_budget"}  # long, and what every change to a kernel is for


def function(node: str) -> str:
    """A test without its case."""
    return node.partition("[")[0]


def listed() -> set[str]:
    return set(FILE.read_text(encoding="utf-8").split())


def main() -> None:
    taken: Counter[str] = Counter()
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([\d.]+)s (?:call|setup|teardown) +(tests/\S+::\S+)", line):
            taken[function(found[2])] += float(found[1])
    names = sorted(name for name, seconds in taken.items() if seconds > MOST and name not in DAILY)
    FILE.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{len(names)} functions, {sum(taken[name] for name in names):.0f} s of {sum(taken.values()):.0f} s")


if __name__ == "__main__":
    main()
