"""What became faster or slower between two files of python -m bench.run, beyond noise.

    python -m bench.compare before.jsonl after.jsonl [--fail-slower 5]

A change counts when the ranges from p20 to p80 do not meet and the medians differ by more than 2 % and by more than
the peers, which nobody changed, moved themselves.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.run import key, read
from bench.timing import quantile

LEAST = 0.02
BOX = ("device", "gpu", "machine", "cores")


@dataclass(frozen=True)
class Change:
    """One implementation in both files; ``change`` is its new median over the old one, minus 1."""

    record: dict
    before: float
    after: float
    apart: bool

    @property
    def change(self) -> float:
        return self.after / self.before - 1

    def __str__(self) -> str:
        name = f"{self.record['op']}, {self.record['workload']}, {self.record['pass']}, {self.record['variant']}"
        return f"{name:<80}{self.before:>12,.1f} -> {self.after:>12,.1f} us  {100 * self.change:+6.1f} %"


def changes(before: list[dict], after: list[dict]) -> list[Change]:
    """Every implementation that has a time in both."""
    old = {key(record): record for record in before if record["median_us"]}
    found = []
    for new in after:
        was = old.get(key(new))
        if was and new["median_us"] and was["length"] == new["length"]:
            apart = was["p80_us"] < new["p20_us"] or new["p80_us"] < was["p20_us"]
            found.append(Change(new, was["median_us"], new["median_us"], apart))
    return found


def drift(found: list[Change]) -> float:
    """How far the peers moved: the median size of their changes, which is the machine's and not ours."""
    peers = [abs(x.change) for x in found if x.record["role"] == "peer"]
    return quantile(peers, 0.5) if peers else 0.0


def beyond_noise(found: list[Change]) -> list[Change]:
    """Those that changed, the slower ones first."""
    least = max(LEAST, drift(found))
    return sorted((x for x in found if x.apart and abs(x.change) > least), key=lambda x: -x.change)


def measurements(path: Path) -> list[dict]:
    """
    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        found = read(path)
        if all(
            {"median_us", "p20_us", "p80_us", "length", "role"} <= record.keys() and key(record) for record in found
        ):
            return found
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise ValueError(f"{path}: not a file of python -m bench.run, which has a record of an op in every line")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--fail-slower", type=float, metavar="PERCENT", help="exit 1 when one of ours is slower by more"
    )
    args = parser.parse_args(arguments)
    try:
        before, after = measurements(args.before), measurements(args.after)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    boxes = [{tuple(x.get(name) for name in BOX) for x in records} for records in (before, after)]
    if boxes[0] != boxes[1]:
        print(f"not the same machine: {boxes[0]} and {boxes[1]}", file=sys.stderr)
        return 2
    found = changes(before, after)
    changed = beyond_noise(found)
    for title, some in (
        ("slower", [x for x in changed if x.change > 0]),
        ("faster", [x for x in changed if x.change < 0]),
    ):
        print(f"{title}: {len(some) or 'none'}", *(f"  {x}" for x in some), sep="\n")
    print(f"{len(found) - len(changed)} of {len(found)} within noise; the peers moved by {100 * drift(found):.1f} %")
    for records, others, where in ((before, after, "before"), (after, before, "after")):
        if only := {key(x) for x in records if x["median_us"]} - {key(x) for x in others if x["median_us"]}:
            print(f"only {where}: {len(only)}", *(f"  {', '.join(x)}" for x in sorted(only)), sep="\n")
    limit = args.fail_slower
    worse = [x for x in changed if limit is not None and x.record["role"] != "peer" and 100 * x.change > limit]
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
