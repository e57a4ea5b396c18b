"""Steps of part A that say what is here and what is right."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from afn_kernels import _cuda, _triton
from afn_kernels.verify import processes, run
from afn_kernels.verify.shapes import checks
from afn_model.host import machine, version
from bench import timing
from bench.first import compilation
from bench.first.child import COMPILE, DEVICE, left, program, say
from bench.first.plan import GROUPS
from bench.first.runner import PTXAS

LIMIT = 45.0  # seconds of one check, compilation included
SPARE = 10.0  # seconds before the end of a step in which no further test begins
HERE = Path(__file__).parents[2]
SMALL = "rms_norm or swiglu"  # of the tests, in a rehearsal
CLOCKS = "clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu,clocks_event_reasons.active,persistence_mode"


def size() -> str:
    return "full" if DEVICE == "cuda" else "toy"


def ops_of(group: str) -> list[str]:
    """The ops of a group that have checks; "rest" are those that no group names."""
    all_of = dict.fromkeys(check.op for check in checks("toy"))
    named = {op for ops in GROUPS.values() for op in ops}
    return [op for op in all_of if (op not in named if group == "rest" else op in GROUPS[group])]


def _said(*command: str) -> str:
    """The last line that a program says, or why it says nothing."""
    found = program(command[0])
    if not found:
        return "not here"
    try:
        done = subprocess.run([found, *command[1:]], capture_output=True, text=True, timeout=15, check=False)
    except subprocess.TimeoutExpired:
        return "no answer"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else ""


def setting() -> None:
    """What is here, and what it reaches."""
    from triton import knobs

    names, shipped = _cuda.shipped()
    peers = ("flash-attn", "flash-attn-3", "liger-kernel", "quack-kernels", "cuda-bindings", "pytest-xdist", "numpy")
    about = {name: version(name) for name in peers}
    own = _said(knobs.nvidia.ptxas.path, "--version") if DEVICE == "cuda" else ""
    say(
        "setting", **machine(DEVICE), versions=about, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
        nvcc=_said("nvcc", "--version"), ptxas=own, other_ptxas=_said(PTXAS, "--version"),
        sanitizer=_said("compute-sanitizer", "--version"), ncu=_said("ncu", "--version"),
        sources=names, machine_code=shipped, stale=[x for x in shipped if _cuda.stale(x)],
        clocks=_said("nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"),
        triton_here=_triton.available(), cuda_here=_cuda.available(),
    )  # fmt: skip
    ceilings()


def ceilings() -> None:
    """A copy and a matrix product, and the clocks right after."""
    clock = timing.clock(DEVICE)
    copy, matmul = timing.copy_rate(clock), timing.matmul_rate(clock)
    clocks = _said("nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader")
    say("ceilings", copy_gb_s=round(copy / 1e9, 1), matmul_tflops=round(matmul / 1e12, 2), clocks=clocks)


def verify(group: str) -> None:
    """Every implementation of a group's ops against float64, one after another, each op in a process of its own."""
    ops, device = ops_of(group), torch.device(DEVICE)
    if COMPILE:
        compilation.checks(ops)
        return
    if DEVICE == "cuda":
        device = torch.device("cuda", 0)
        rows = processes.rows(size(), device, ops=ops, time_them=False, limit=LIMIT, workers=1)
    else:
        rows = run.rows(size(), device, ops=ops, time_them=False)
    for row in rows:
        say("verify", **row)


def noise() -> None:
    """Matrix products of random sizes until the process is ended."""
    generator = torch.Generator().manual_seed(0)
    most, dtype = (6144, torch.bfloat16) if DEVICE == "cuda" else (96, torch.float32)
    end = time.monotonic() + 600
    while time.monotonic() < end:
        m, n, k = (16 * int(x) for x in torch.randint(1, most // 16, (3,), generator=generator))
        a, b = torch.randn(m, k, device=DEVICE, dtype=dtype), torch.randn(k, n, device=DEVICE, dtype=dtype)
        for _ in range(8):
            a @ b
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        else:
            time.sleep(0.05)


class _Report:
    """A plugin of pytest that says each failure when it happens, and the counts now and then; it ends in time."""

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.session, self.begun = None, 0

    def pytest_collection_finish(self, session):
        self.session = session

    def pytest_runtest_logstart(self):
        self.begun += 1

    def pytest_runtest_logfinish(self):
        if self.session is not None and not left(SPARE):
            self.session.shouldstop = "no time is left"

    @property
    def unasked(self) -> int:
        """Tests that nobody had time for."""
        return len(self.session.items) - self.begun if self.session is not None else 0

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
            if report.outcome == "failed":
                text = str(report.longrepr).strip().splitlines()
                say("test", test=report.nodeid, status="failed", why=text[-1][:400] if text else "")
            if not sum(self.counts.values()) % 20:
                say("tests", **self.counts)


def tests(part: str, parts: str) -> int:
    """A part of tests/kernels/test_every_op.py."""
    import pytest

    which = "within_budget" if DEVICE == "cuda" else f"within_budget and ({SMALL})"
    counted = _Report()
    os.chdir(HERE)
    sys.stdout.flush()
    code = pytest.main(
        ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "--device", DEVICE, "--shuffle", "0",
         "--part", f"{part}/{parts}", "tests/kernels/test_every_op.py", "-k", which],
        plugins=[counted],
    )  # fmt: skip
    say("tests", **counted.counts, over=True)
    if counted.unasked and not left(SPARE):
        say("unasked", status="skipped", why=f"no time for {counted.unasked} of the tests of this part")
        return 0
    return 0 if code in (0, 1, 5) else int(code)
