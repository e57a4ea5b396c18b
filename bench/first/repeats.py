"""Equal inputs give equal bits: 200 times beside other work, and by another assembler."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from afn_kernels import _counters, _verdicts
from afn_kernels.verify.check import Check, deterministic, evaluate, same_bits
from afn_kernels.verify.run import dtype_of, selected
from bench.first.checks import ops_of, size
from bench.first.child import DEVICE, left, say, told
from bench.first.runner import PTXAS

TIMES = 200 if DEVICE == "cuda" else 2
SPARE = 5.0  # seconds of the limit that are kept for the end of a step
MOST = 9 << 30  # device bytes that a check may need
OURS = ("triton", "cuda")
RIGHT = "ok" if DEVICE == "cuda" else "rehearsed"  # the interpreter has no assembler
Call = Callable[[], dict[str, Tensor]]


def asked(group: str) -> Iterator[tuple[Check, str, Call]]:
    """Each check of a group that fits, by each of our implementations that can run it; on a CPU one check an op."""
    device, seen = torch.device(DEVICE), set()
    for _, check in selected(size(), set(ops_of(group))):
        if check.need() > MOST or (DEVICE == "cpu" and check.op in seen):
            continue
        seen.add(check.op)
        source = check.source(device, dtype_of(device))
        inputs = check.inputs(source)
        for row in check.rows(inputs):
            if row.impl in OURS and row.status not in ("unavailable", "unsupported"):
                call = partial(check.call, impl=row.impl)
                yield check, row.impl, partial(evaluate, check, call, inputs, source.dtype)


def first(run: Call) -> tuple[dict[str, Tensor], Call]:
    """What a call gives, and the call: with gradients in PyTorch's deterministic mode, where it has them there."""

    def strict() -> dict[str, Tensor]:
        with deterministic():
            return run()

    try:
        return strict(), strict
    except (RuntimeError, ValueError) as error:
        if "determinis" not in str(error):
            raise
    outputs = partial(run, backward=False)
    return outputs(), outputs


def bits(found: dict[str, Tensor]) -> str:
    """A hash of every bit."""
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode())
        digest.update(found[name].detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:24]


def repeats(group: str) -> None:
    """As often as there is time for, at most ``TIMES``."""
    todo = list(asked(group))
    for number, (check, impl, run) in enumerate(todo):
        common = {"op": check.op, "check": check.name, "impl": impl}
        share, began, times, other = left(SPARE) / (len(todo) - number), time.perf_counter(), 0, ""
        try:
            expected, again = first(run)
            while times < TIMES and not other and time.perf_counter() - began < share:
                found = again()
                times += 1
                other = next((name for name, x in found.items() if not same_bits(x, expected[name])), "")
            why = f"{other} has other bits in repeat {times}" if other else ""
            say("repeats", **common, status="failed" if why else "ok", why=why, repeats=times, digest=bits(expected),
                took_s=round(time.perf_counter() - began, 2))  # fmt: skip
        except Exception as error:
            say("repeats", **common, status="failed", why=_verdicts.one_line(error), repeats=times)
    say("counters", **counters())


def counters() -> dict:
    """Whether every arrival counter is zero again."""
    left = sum(int(block.zeros.count_nonzero()) for block in _counters._BLOCKS.values())
    return {"status": "failed" if left else "ok", "why": f"{left} are not zero" if left else "", "left": left,
            "used": sum(block.used for block in _counters._BLOCKS.values())}  # fmt: skip


def assembler(group: str) -> None:
    """The bits that the first assembler's kernels gave, by this process's."""
    if DEVICE == "cuda" and not Path(PTXAS).exists():
        say("assembler", status="skipped", why=f"{PTXAS} is not here")
        return
    before = {
        (x["op"], x["check"], x["impl"]): x["digest"] for x in told() if x.get("digest") and x["kind"] == "repeats"
    }
    for check, impl, run in asked(group):
        if impl != "triton":
            continue
        common = {"op": check.op, "check": check.name, "impl": impl}
        expected = before.get((check.op, check.name, impl))
        if expected is None:
            say("assembler", **common, status="skipped", why="its bits by the first assembler are not known")
            continue
        try:
            same = bits(first(run)[0]) == expected
            say("assembler", **common, status=RIGHT if same else "failed", why="" if same else "other bits")
        except Exception as error:
            say("assembler", **common, status="failed", why=_verdicts.one_line(error))
