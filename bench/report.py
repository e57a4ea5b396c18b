"""Markdown and plots from what python -m bench.run wrote.

    python -m bench.report bench/results/h200

Reads ops*.jsonl of the folder and writes ops.md, peers.png, roofline.png and bars-<op>.png into it. Without matplotlib
there are no plots.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from afn_kernels._registry import PLAIN
from afn_model.files import write_text
from bench.record import WHOSE, verdict
from bench.run import read

NUMBERS = {
    "launch_us": ",.1f",
    "first_call_s": ".2f",
    "peak_mb": ",.0f",
    "gb_s": ",.0f",
    "tflops": ".1f",
    "of_floor": ".2f",
    "ratio_to_best_peer": ".2f",
    "error": ".1e",
}


def records(folder: Path) -> list[dict]:
    """What the folder's ops*.jsonl hold; of a call that is in several, the latest."""
    found = sorted((x for file in sorted(folder.glob("ops*.jsonl")) for x in read(file)), key=lambda x: x["date"])
    calls = {tuple(x[name] for name in ("op", "workload", "pass", "variant")): x for x in found}
    return sorted(calls.values(), key=lambda x: x["op"])


def groups(found: list[dict]) -> dict[tuple[str, str, str], dict[str, dict]]:
    """(op, workload, pass) to its implementations by name, those without a time left out."""
    grouped: dict = {}
    for x in found:
        if x["median_us"]:
            grouped.setdefault((x["op"], shape(x), x["pass"]), {})[x["variant"]] = x
    return grouped


def shape(x: dict) -> str:
    return x["workload"] if x["length"] is None else f"{x['workload']}, cut to length {x['length']}"


def cell(x: dict, name: str, spec: str) -> str:
    return "" if x[name] is None else format(x[name], spec)


def table(head: str, rows: list[list[str]]) -> list[str]:
    return [f"| {head} |", "|---" * (head.count("|") + 1) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def setting(found: list[dict]) -> list[str]:
    """On what, with what, and what that machine's memory and matrix units reached."""

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(x[name]) for x in found if x.get(name) is not None}))

    where = all_of("gpu") or f"{all_of('machine')} CPU, {all_of('threads')} threads"
    dates = " to ".join(dict.fromkeys((min(x["date"] for x in found), max(x["date"] for x in found))))
    load = " to ".join(dict.fromkeys(str(pick(x["load"] for x in found)) for pick in (min, max)))
    lines = [f"# Ops on {where}", ""]
    if {x["device"] for x in found} == {"cpu"}:
        cut = ", at shapes cut to fit it" if any(x["length"] for x in found) else ""
        lines += [f"Measured on a CPU{cut}, in {all_of('dtype')}: this says nothing about a GPU.", ""]
    driver = f", driver {all_of('driver')}" if all_of("driver") else ""
    rates = [sorted({x[name] for x in found}) for name in ("copy_gb_s", "matmul_tflops")]
    copy, matmul = (" to ".join(f"{x:,.4g}" for x in {rate[0]: 0, rate[-1]: 0}) for rate in rates)
    return [
        *lines,
        f"{dates}, load {load}; Python {all_of('python')}, PyTorch {all_of('torch')}, "
        f"Triton {all_of('triton')}{driver}. Measured on the same box: copy {copy} GB/s, matmul {matmul} TFLOP/s.",
        "",
        'A floor is bytes over memory bandwidth or operations over matrix rate, whichever is longer: "of floor" by the '
        'data sheet, "of reachable" by the copy and the matmul above. "×" is the best peer\'s time over ours.',
        "",
    ]


def summary(grouped: dict) -> list[str]:
    """A row per workload and pass: ours, the best peer, and who is faster."""
    rows, count = [], dict.fromkeys(("faster", "equal", "within noise", "loses", "no peer"), 0)
    for (op, name, which), by_variant in grouped.items():
        ours = by_variant.get("ours")
        if ours is None:
            continue
        best = by_variant.get(ours["best_peer"])
        word = verdict(ours, best)
        count[word] += 1
        mine = f"{ours['median_us']:,.1f} ({chosen(ours)})"
        limits = [cell(ours, "of_floor", ".2f"), cell(ours, "of_reachable", ".2f")]
        theirs = [best["variant"], f"{best['median_us']:,.1f}"] if best else ["", ""]
        rows.append([op, name, which, mine, *limits, *theirs, cell(ours, "ratio_to_best_peer", ".2f")])
        rows[-1].append(f"**{word}**" if word == "loses" else word)
    said = ", ".join(f"{n} {word}" for word, n in count.items() if n)
    head = "op | workload | pass | ours, µs | of floor | of reachable | best peer | its µs | × | verdict"
    return ["## Ours against the best peer", "", f"{len(rows)} rows: {said}.", "", *table(head, rows)]


def chosen(ours: dict) -> str:
    """What "auto" took, and whose that is where it is somebody else's kernel."""
    name = ours["chosen"]
    return f"{name}, {WHOSE[name]}" if name in WHOSE and name not in PLAIN else str(name)


def own(grouped: dict) -> list[str]:
    """A row per workload and pass of an op given by --also: yours, ours, and who is faster."""
    rows = []
    for (op, name, which), by_variant in grouped.items():
        ours = by_variant.get("ours")
        for x in (x for x in by_variant.values() if x["role"] == "also"):
            row = [op, name, which, x["variant"], f"{x['median_us']:,.1f}"]
            if ours is None:
                rows.append([*row, "", "", "", cell(x, "error", ".1e")])
                continue
            ratio = f"{ours['median_us'] / x['median_us']:.2f}"
            theirs = f"{ours['median_us']:,.1f} ({chosen(ours)})"
            rows.append([*row, theirs, ratio, verdict(x, ours), cell(x, "error", ".1e")])
    head = "op | workload | pass | yours | its µs | ours, µs | × | yours is | its error"
    return ["## Yours against ours", "", *table(head, rows)] if rows else []


def details(grouped: dict) -> list[str]:
    """Every implementation that has a time, a table per op."""
    lines = ["## Every implementation", ""]
    head = "workload | pass | implementation | µs | p20 to p80 | launch µs | first call s | peak MB | GB/s | TFLOP/s"
    head += " | of floor | × | error"
    for op in dict.fromkeys(key[0] for key in grouped):
        rows = []
        for (_, name, which), by_variant in ((key, x) for key, x in grouped.items() if key[0] == op):
            for x in sorted(by_variant.values(), key=lambda x: x["median_us"]):
                which_one = f"**ours** ({chosen(x)})" if x["role"] == "ours" else x["variant"]
                which_one += " (yours)" if x["role"] == "also" else ""
                span = f"{x['p20_us']:,.1f} to {x['p80_us']:,.1f}"
                numbers = [cell(x, column, spec) for column, spec in NUMBERS.items()]
                rows.append([name, which, which_one, f"{x['median_us']:,.1f}", span, *numbers])
        lines += [f"### {op}", "", *table(head, rows)]
    return lines


def reasons(found: list[dict], column: str, title: str) -> list[str]:
    """What a column says of which call; what it says of every workload of an op takes one row."""
    said: dict = {}
    for x in found:
        if x[column]:
            said.setdefault((x["op"], x["variant"], x[column]), []).append(f"{x['workload']}, {x['pass']}")
    rows = []
    for (op, variant, reason), where in said.items():
        everywhere = len(where) == sum(x["op"] == op and x["variant"] == variant for x in found)
        rows.append([op, variant, "all" if everywhere else "; ".join(where), reason.replace("|", "/")])
    return [f"## {title}", "", *table("op | implementation | where | reason", rows)] if rows else []


def markdown(found: list[dict]) -> str:
    grouped = groups(found)
    lines = [
        *setting(found),
        *own(grouped),
        *summary(grouped),
        *details(grouped),
        *reasons(found, "absent", "Not measured"),
    ]
    remarks = reasons([x for x in found if x["median_us"]], "note", "Remarks on the comparison with float64")
    return "\n".join(lines + remarks)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="default: that of this machine in bench/results")
    args = parser.parse_args(arguments)
    if args.folder is None:
        import torch

        from bench.measure import results

        args.folder = results("cuda" if torch.cuda.is_available() else "cpu")
    found = records(args.folder)
    if not found:
        raise SystemExit(f"{args.folder} has no ops*.jsonl with records")
    write_text(args.folder / "ops.md", markdown(found))
    print(args.folder / "ops.md")
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed", file=sys.stderr)
        return
    from bench import plots

    for path in plots.draw(groups(found), args.folder):
        print(path)


if __name__ == "__main__":
    main()
