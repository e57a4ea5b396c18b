"""Everything that the plan launches, compiled for sm_90a where there is no GPU: an error of Python or of a compiler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from afn_kernels import _verdicts
from afn_kernels.verify.check import Check
from afn_kernels.verify.run import selected
from bench.first.child import say
from bench.sm90 import launches


@contextmanager
def compiling(what: str) -> Iterator[None]:
    """Within it, launches are compiled; then a line says which."""
    began = time.perf_counter()
    with launches.compiling() as found:
        yield
    kernels = sorted({launch.name for launch in found})
    say("compiled", what=what, status="ok", kernels=kernels, took_s=round(time.perf_counter() - began, 2))


def check(one: Check) -> None:
    """What a check launches at its real shape."""
    source = one.source(torch.device("meta"), torch.bfloat16)
    inputs = one.inputs(source)
    try:
        with compiling(str(one)):
            call(one, inputs)
    except Exception as error:
        say("compiled", what=str(one), status="failed", why=_verdicts.one_line(error))


def call(one: Check, inputs: dict) -> None:
    """Forward and backward on tensors without memory."""
    inputs = dict(inputs)
    if one.wrt:
        inputs |= {name: inputs[name].detach().requires_grad_() for name in one.wrt}
    with torch.set_grad_enabled(bool(one.wrt)):
        outs = one.call(inputs, "triton")
    reached = [x for x in (outs if isinstance(outs, tuple) else (outs,)) if x.requires_grad]
    if reached:
        torch.autograd.grad(reached, [inputs[name] for name in one.wrt], [torch.empty_like(x) for x in reached])


def checks(ops: list[str]) -> None:
    """All real checks of some ops."""
    for _, one in selected("full", set(ops)):
        if launches.has(one.op, "triton"):
            check(one)
