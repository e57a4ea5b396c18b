"""Runs the checks in this process, one implementation after another: a fault is a row, not the end."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import torch

from afn_kernels import _verdicts
from afn_kernels.verify.check import Baseline, Check, judge
from afn_kernels.verify.clock import timed
from afn_kernels.verify.shapes import checks

SHARE = 0.9  # of a GPU's free memory that a check may need
Row = dict[str, Any]


class DeviceLost(Exception):
    """The GPU answers nothing any more in this process: what is left needs a new one."""


def selected(size: str, ops: Container[str] | None) -> list[tuple[int, Check]]:
    """The checks of some ops, with their numbers among all."""
    return [(number, check) for number, check in enumerate(checks(size)) if ops is None or check.op in ops]


def dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def rows(
    size: str,
    device: torch.device,
    *,
    ops: Container[str] | None = None,
    impls: Container[str] | None = None,
    seed: int = 0,
    check: bool = True,
    time_them: bool = True,
    start: int = 0,
    skip: Container[tuple[str, str]] = (),
    say: Callable[[Row], None] | None = None,
) -> Iterator[Row]:
    """A row for every check of every implementation as soon as it is known, then one of times.

    Args:
        size: of ``checks``.
        device: where.
        ops: those to check; None for all.
        impls: those to check; None for all.
        seed: of the inputs.
        check: whether results are compared.
        time_them: whether what is right is timed.
        start: the first number of a check.
        skip: (op, implementation) that are not called: known to fail.
        say: is told of every check before it begins, so that whoever reads knows what a process died of.

    Raises:
        DeviceLost: after the row of what has lost it.
    """
    for number, one in selected(size, ops):
        if number < start:
            continue
        common = {"op": one.op, "check": one.name, "size": size, "number": number}
        source = one.source(device, dtype_of(device), seed)
        common["dtype"] = str(source.dtype).removeprefix("torch.")
        _tidy(device)
        if device.type == "cuda" and (lack := _lack(one, device)):
            yield common | {"impl": "", "status": "skipped", "reason": lack}
            continue
        right: list[str] = []
        begin = (lambda impl, common=common: say(common | {"impl": impl, "status": "begun"})) if say else None
        for row in _of(one, source, impls, skip, right, begin) if check else _named(one, source, impls, skip, right):
            yield common | row
            if row["status"] == "failed" and _lost(device):
                raise DeviceLost(row["reason"])
        _tidy(device)
        if time_them and one.timed and right:
            if say:
                say(common | {"impl": "", "status": "begun"})
            try:
                if any((found := timed(one, source, right))["seconds"].values()):
                    yield common | {"impl": "", "status": "timed", **found}
            except Exception as error:
                yield common | {"impl": "", "status": "skipped", "reason": f"not timed: {_verdicts.one_line(error)}"}


def _of(one: Check, source, impls, skip, right: list[str], begin: Callable[[str], None] | None) -> Iterator[Row]:
    """The rows of a check; what is right is appended to ``right``."""
    try:
        baseline = Baseline.of(one, source)
    except Exception as error:
        yield {"impl": "", "status": "skipped", "reason": f"nothing to compare with: {_verdicts.one_line(error)}"}
        return
    for asked in one.rows(baseline.inputs):
        if (impls is not None and asked.impl not in impls) or asked.status in ("unavailable", "unsupported"):
            continue
        if (one.op, asked.impl) in skip:
            continue
        if begin:
            begin(asked.impl)
        began = time.perf_counter()
        try:
            reason, error, used = judge(baseline, asked.impl)
            row = {"status": "failed" if reason else "ok", "reason": reason, "error": error, "used": used}
        except Exception as error:
            elsewhere = isinstance(error, TimeoutError) or _verdicts.out_of_memory(error)
            row = {"status": "skipped" if elsewhere else "failed", "reason": _verdicts.one_line(error)}
        if row["status"] == "ok":
            right.append(asked.impl)
        yield {"impl": asked.impl, **row, "took": round(time.perf_counter() - began, 3)}


def _named(one: Check, source, impls, skip, right: list[str]) -> Iterator[Row]:
    """No rows: what can run the call counts as right."""
    for asked in one.rows(one.inputs(source)):
        if asked.status not in ("unavailable", "unsupported") and (one.op, asked.impl) not in skip:
            right += [asked.impl] if impls is None or asked.impl in impls else []
    yield from ()


def _tidy(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _lack(one: Check, device: torch.device) -> str:
    free, _ = torch.cuda.mem_get_info(device)
    need = one.need()
    return f"needs {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free" if need > SHARE * free else ""


def _lost(device: torch.device) -> bool:
    """Whether CUDA has lost its context: then every later call fails too."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        return bool(torch.zeros(1, device=device).item())
    except Exception:
        return True


def ordered(found: Sequence[Row]) -> list[Row]:
    """In the order of the checks, whatever order processes ended in."""
    return sorted(found, key=lambda row: (row["op"], row["number"], row["status"] == "timed"))
