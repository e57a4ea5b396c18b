"""Nsight Compute's view of one launch of a kernel."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bench.first.child import COMPILE, DEVICE, left, output, program, say
from bench.first.figures import compiled, fitted, usable, workload
from bench.first.plan import PROFILES

HERE = Path(__file__).parents[2]
SECTIONS = ("SpeedOfLight", "WarpStateStats", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats")
IMPLS = {"log_mel": "cuda", "decode_attention": "cuda"}  # triton for the others


def once(name: str) -> None:
    """Calls the row's op twice by the kernel's implementation: the second is what is profiled."""
    work, which = workload(PROFILES[name])
    work, _ = fitted(work)
    if DEVICE == "cpu" and work.op == "decode_attention":
        work = replace(work, dtype=torch.float16)  # the kernel has no float32
    wrt = work.wrt if which == "forward+backward" else ()
    inputs = {x: t.requires_grad_(x in wrt) for x, t in work.make(DEVICE, work.dtype).items()}
    for _ in range(2):
        outs = work.call(inputs, IMPLS.get(name, "triton"))
        if wrt:
            torch.autograd.grad(outs, [inputs[x] for x in wrt], [torch.ones_like(x) for x in outs])
    say("once", kernel=name, op=work.op, status="ok")


def profile(name: str) -> int:
    """The metrics of the second launch."""
    work, _ = workload(PROFILES[name])
    impl = IMPLS.get(name, "triton")
    if COMPILE:
        return compiled(work) if impl == "triton" else 0
    if DEVICE == "cpu":
        once(name)
        return 0
    if why := usable(work.op, impl):
        say("profile", kernel=name, status="skipped", why=f"{impl}: {why}")
        return 0
    ncu = program("ncu")
    if not ncu:
        say("profile", kernel=name, status="skipped", why="ncu is not here")
        return 0
    command = [ncu, "--clock-control", "none", "--target-processes", "all", "--kernel-name", f"regex:^{name}",
               "--launch-skip", "1", "--launch-count", "1", "--csv", "--page", "details",
               *(word for section in SECTIONS for word in ("--section", section)),
               sys.executable, "-m", "bench.first.child", "once", name]  # fmt: skip
    limit = left(3.0)
    out, err, code = output(command, limit, HERE)
    if code is None:
        say("profile", kernel=name, status="skipped", why=f"ncu took more than {limit:.0f} s")
        return 0
    found = metrics(out)
    last = [x for x in (out + err).splitlines() if "==ERROR==" in x] or [""]
    status = "ok" if found else "skipped"
    say("profile", kernel=name, status=status, why="" if found else f"ncu: {last[0][:300]}", metrics=found)
    return 0


def metrics(text: str) -> dict[str, str]:
    """Names with units, and values, of ncu's table of details."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    found = {}
    for row in csv.DictReader(lines):
        if row.get("Metric Name") and row.get("Metric Value"):
            unit = row.get("Metric Unit") or ""
            found[f"{row['Metric Name']}{f', {unit}' if unit else ''}"] = row["Metric Value"]
    return found
