"""first.md and its pictures, from first.jsonl.

python -m bench.first.report runs/first
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

from afn_model.files import write_text
from bench.report import cell, groups, summary, table

WRONG = ("failed", "crashed", "timed out")
JUDGED = {
    "verify": "checks against float64", "repeats": "repeats on equal inputs", "counters": "arrival counters",
    "assembler": "another ptxas", "engine": "the engine", "sanitised": "NVIDIA's checkers",
    "launch": "launches under them", "compiled": "compiled for sm_90a", "test": "failed tests", "step": "processes",
}  # fmt: skip
PLANTED = "planted "


def read(folder: Path) -> list[dict]:
    """The lines; a last one that was cut off is left out."""
    found = []
    for line in (folder / "first.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def wrong(lines: list[dict]) -> list[dict]:
    """What is not right; faults on purpose only where they were not seen."""
    found = [x for x in lines if x.get("status") in WRONG and not x["step"].startswith(PLANTED)]
    expected = {"planted hang": "timed out", "planted crash": "crashed", "planted error": "failed"}
    for x in lines:
        if x["kind"] == "step" and x["step"] in expected and x["status"] != expected[x["step"]]:
            found.append({**x, "status": "failed", "why": f"planted, and the runner says {x['status']}"})
    return found


def what(x: dict) -> str:
    """A line's subject in words."""
    names = (
        "op",
        "check",
        "impl",
        "tool",
        "source",
        "kernel",
        "test",
        "what",
        "sweep",
        "change",
        "goal",
        "figure",
        "how",
    )
    return ", ".join(str(x[name]) for name in names if x.get(name)) or x["step"]


def said(text: object) -> str:
    return str(text or "").replace("|", "/").replace("\n", " ")


def setting(lines: list[dict]) -> list[str]:
    found = next((x for x in lines if x["kind"] == "setting"), None)
    out = ["# The first ten minutes of a GPU", ""]
    if any(x.get("rehearsal") for x in lines):
        out = ["# A rehearsal on a CPU of the first ten minutes of a GPU", "",
               "**No GPU has run this.** Kernels ran in Triton's interpreter and compiled for the host, at toy shapes; "
               "real shapes were compiled for sm_90a and not run. No time in it is a GPU's.", ""]  # fmt: skip
    if found:
        keys = (
            "gpu driver python torch triton cuda cudnn nvcc ptxas other_ptxas sanitizer ncu clocks machine_code stale"
        )
        keys = f"{keys} triton_here cuda_here date cores load".split()
        rows = [[key.replace("_", " "), said(found[key])] for key in keys if found.get(key) not in (None, "", [])]
        rows += [[name, said(version)] for name, version in found["versions"].items() if version]
        out += table("what | here", rows)
    for x in (x for x in lines if x["kind"] == "ceilings"):
        out.append(f"Part {x['part']}: copy {x['copy_gb_s']:,.0f} GB/s, matmul {x['matmul_tflops']:,.1f} TFLOP/s.")
    return [*out, ""]


def counts(lines: list[dict]) -> list[str]:
    rows = []
    for kind, words in JUDGED.items():
        found = Counter(x["status"] for x in lines if x["kind"] == kind and not x["step"].startswith(PLANTED))
        if found:
            rows.append([words, ", ".join(f"{n} {status}" for status, n in sorted(found.items()))])
    last: dict[str, dict] = {x["step"]: x for x in lines if x["kind"] == "tests"}
    total = Counter()
    for x in last.values():
        total.update({name: x.get(name, 0) for name in ("passed", "failed", "skipped")})
    if last:
        unfinished = sum(not x.get("over") for x in last.values())
        rows.append(["tests in every dtype", ", ".join(f"{n} {name}" for name, n in total.items() if n)
                     + (f"; {unfinished} processes did not finish" if unfinished else "")])  # fmt: skip
    return ["## Right or wrong", "", *table("what | how many", rows)]


def faults(lines: list[dict]) -> list[str]:
    rows = [[x["kind"], said(what(x)), x["status"], said(x.get("why") or x.get("reason"))] for x in wrong(lines)]
    return ["## Not right", "", *(table("kind | what | status | why", rows) if rows else ["Nothing.", ""])]


def skipped(lines: list[dict]) -> list[str]:
    rows = [
        [x["kind"], said(what(x)), said(x.get("why") or x.get("reason"))] for x in lines if x.get("status") == "skipped"
    ]
    return ["## Not asked", "", *table("kind | what | why", rows)] if rows else []


def margins(lines: list[dict]) -> list[str]:
    """Of every implementation the most that it used of a budget."""
    found: dict[tuple[str, str], list[dict]] = {}
    for x in lines:
        if x["kind"] == "verify" and x.get("impl") and x["status"] in ("ok", "failed"):
            found.setdefault((x["op"], x["impl"]), []).append(x)
    rows = []
    for (op, impl), checks in sorted(found.items()):
        worst = max(checks, key=lambda x: x.get("used") or 0.0)
        good = sum(x["status"] == "ok" for x in checks)
        rows.append([op, impl, f"{good} of {len(checks)}", said(worst["check"]), f"{worst.get('used') or 0.0:.2f}",
                     f"{worst.get('error') or 0.0:.1e}"])  # fmt: skip
    head = "op | implementation | right | closest to its budget | of the budget | error"
    return ["## How near to the budgets", "", *table(head, rows)] if rows else []


def caution(lines: list[dict]) -> list[str]:
    """Beside times of a rehearsal."""
    words = "Times of toy shapes on a CPU: they show that a row runs, and nothing else."
    return [words, ""] if any(x.get("rehearsal") for x in lines) else []


def goals(lines: list[dict]) -> list[str]:
    rows = []
    for x in (x for x in lines if x["kind"] == "goal"):
        name = f"{x['variant']} ({x['chosen']})" if x.get("chosen") else x["variant"]
        time = f"{x['median_us']:,.1f}" if x["median_us"] else said(x["absent"])
        numbers = [
            cell(x, "gb_s", ",.0f"),
            cell(x, "tflops", ".1f"),
            cell(x, "of_floor", ".2f"),
            cell(x, "of_reachable", ".2f"),
        ]
        rows.append([x["goal"], x["pass"], name, time, x["clock"], *numbers, said(x.get("not_captured"))])
    head = "goal | pass | ours | µs | clock | GB/s | TFLOP/s | of floor | of reachable | why no graph"
    return ["## Goals, ours alone", "", *caution(lines), *table(head, rows)] if rows else []


def peers(lines: list[dict]) -> list[str]:
    found = [x for x in lines if x["kind"] == "peers"]
    if not found:
        return []
    rows = []
    for x in (x for x in found if x["median_us"]):
        span = f"{x['p20_us']:,.1f} to {x['p80_us']:,.1f}"
        numbers = [cell(x, "tflops", ".1f"), cell(x, "gb_s", ",.0f"), said(x["note"])]
        rows.append([x["op"], x["workload"], x["pass"], x["variant"], f"{x['median_us']:,.1f}", span, *numbers])
    out = [*caution(lines), *summary(groups(found)), "## Every row", ""]
    out += table("op | workload | pass | implementation | µs | p20 to p80 | TFLOP/s | GB/s | apart", rows)
    absent = [[x["op"], x["workload"], x["pass"], x["variant"], said(x["absent"])] for x in found if x["absent"]]
    return out + (
        ["## Without a time", "", *table("op | workload | pass | implementation | why", absent)] if absent else []
    )


def sweeps(lines: list[dict]) -> list[str]:
    found = [x for x in lines if x["kind"] == "sweep"]
    first = {x["sweep"]: x["median_us"] for x in reversed(found) if x.get("median_us")}
    rows = []
    for x in found:
        time = x.get("median_us")
        ratio = f"{first[x['sweep']] / time:.3f}" if time else ""
        rows.append([x["sweep"], said(x.get("change")), f"{time:,.1f}" if time else said(x.get("why")), ratio,
                     "" if x.get("apart") is None else f"{x['apart']:.1e}"])  # fmt: skip
    head = "sweep | change | µs | × the table's row | apart from it"
    return ["## Sweeps", "", *table(head, rows)] if rows else []


def steps(lines: list[dict]) -> list[str]:
    out = []
    rows = [[x["how"], f"{x['median_us']:,.1f}", f"{x['host_us']:,.1f}", said(x["gb_s"]), said(x["why"])]
            for x in lines if x["kind"] == "decode_step"]  # fmt: skip
    if rows:
        out += ["## A decode step of a few layers", "", *table("how | µs | host µs | GB/s | why not", rows)]
    for x in (x for x in lines if x["kind"] == "profile" and x.get("metrics")):
        out += [
            f"## Nsight Compute: {x['kernel']}",
            "",
            *table("metric | value", [[said(a), said(b)] for a, b in x["metrics"].items()]),
        ]
    return out


def engine(lines: list[dict]) -> list[str]:
    """How near the engine's checks came to their budgets, and its times."""
    rows = [[x["check"], x["status"], f"{x['used']:.2f}", f"{x['apart']:.1e}" if "apart" in x else ""]
            for x in lines if x["kind"] == "engine" and "used" in x]  # fmt: skip
    out = ["## The engine", "", *table("check | right | of the budget | apart", rows)] if rows else []
    found = [x for x in lines if x["kind"] == "serving" and x["status"] == "ok"]
    names = {
        "decode": "kv batch context how layers step_ms tokens_per_s gb_s",
        "first token": "how layers tokens seconds hashing_s reused windows_encoded",
        "arrival": "how layers budget_ms steps seconds alone_p50_ms alone_p99_ms alone_most_ms beside_p50_ms "
        "beside_p99_ms beside_most_ms",
        "pages": "how gb save_gb_s load_gb_s",
    }
    for figure, fields in names.items():
        rows = [[shown(x[name]) for name in fields.split()] for x in found if x["figure"] == figure]
        head = " | ".join(name.replace("_per_s", "/s").replace("_", " ") for name in fields.split())
        out += [f"## The engine: {figure}", "", *caution(lines), *table(head, rows)] if rows else []
    return out


def shown(x: object) -> str:
    return f"{x:,.4g}" if isinstance(x, float) else str(x)


def phases(lines: list[dict]) -> list[str]:
    """How long each phase took, and which of its steps took longest."""
    found: dict[str, list[dict]] = {}
    for x in (x for x in lines if x["kind"] == "step"):
        found.setdefault(f"{x['part']}: {x['phase']}", []).append(x)
    rows = []
    for name, ended in found.items():
        ran = [x for x in ended if "took_s" in x]
        if ran:
            longest = max(ran, key=lambda x: x["took_s"])
            begin, end = min(x["at_s"] - x["took_s"] for x in ran), max(x["at_s"] for x in ran)
            rows.append(
                [name, f"{begin:.0f} to {end:.0f}", str(len(ran)), f"{longest['step']}, {longest['took_s']:.0f} s"]
            )
    return ["## Where the seconds went", "", *table("phase | seconds | processes | the longest", rows)] if rows else []


def markdown(lines: list[dict]) -> str:
    parts = (setting, counts, faults, goals, peers, sweeps, steps, engine, margins, skipped, phases)
    return "\n".join(line for part in parts for line in part(lines))


def draw(lines: list[dict], folder: Path) -> None:
    """timeline.png, and sweeps.png where there are times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ran = [x for x in lines if x["kind"] == "step" and "took_s" in x]
    if ran:
        colours = {"done": "tab:green", "failed": "tab:red", "crashed": "tab:red", "timed out": "tab:orange"}
        figure, axes = pyplot.subplots(figsize=(9, 0.14 * len(ran) + 1))
        for y, x in enumerate(ran):
            axes.barh(y, x["took_s"], left=x["at_s"] - x["took_s"], color=colours[x["status"]])
        axes.set_yticks(range(len(ran)), [x["step"] for x in ran], fontsize=5)
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.set_title("rehearsal on a CPU" if any(x.get("rehearsal") for x in lines) else "one GPU")
        figure.savefig(folder / "timeline.png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)
    timed = [x for x in lines if x["kind"] == "sweep" and x.get("median_us")]
    if timed:
        figure, axes = pyplot.subplots(figsize=(9, 0.25 * len(timed) + 1))
        first = {x["sweep"]: x["median_us"] for x in reversed(timed)}
        axes.barh(range(len(timed)), [first[x["sweep"]] / x["median_us"] for x in timed])
        axes.set_yticks(range(len(timed)), [f"{x['sweep']}: {x['change']}" for x in timed], fontsize=6)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set_xlabel("speed, the table's own row being 1")
        figure.savefig(folder / "sweeps.png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)


def write(folder: Path) -> int:
    """Makes the files; how much is not right."""
    lines = read(folder)
    write_text(folder / "first.md", markdown(lines))
    if importlib.util.find_spec("matplotlib") is not None:
        try:
            draw(lines, folder)
        except Exception as error:  # of a matplotlib that does not fit the NumPy that is here, say
            print(f"{folder}: no pictures: {type(error).__name__}: {error}", file=sys.stderr)
    return len(wrong(lines))


if __name__ == "__main__":
    sys.exit(1 if write(Path(sys.argv[1])) else 0)
