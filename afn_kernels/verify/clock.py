"""How long implementations take for one call, forward and with its backward: rounds in turns, the median of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from afn_kernels import _cuda, _triton, _verdicts
from afn_kernels._registry import ASKED, Explained
from afn_kernels.verify.check import Check, Inputs, InputSource

ROUNDS = 7
BLOCK = 2e-3  # seconds that a block of short calls lasts
SPIN = 2_000_000  # cycles, about a millisecond: a block is queued before its first call runs


def timed(check: Check, source: InputSource, impls: list[str]) -> dict[str, Any]:
    """Seconds of every implementation, by kind of call, and the octave of the call's size.

    An emulated kernel has no time: on a CPU Triton's interpreter and CUDA kernels compiled for the host are tests.
    """
    inputs = check.inputs(source)
    if source.device.type == "cpu":
        emulated = {"triton": _triton.interpreted(), "cuda": _cuda.emulated()}
        impls = [impl for impl in impls if not emulated.get(impl)]
    found: dict[str, Any] = {"seconds": {}, "octave": 0}
    for backward in (False, True) if check.wrt else (False,):
        what, found["octave"] = _named(check, inputs, backward)
        calls = {}
        for impl in impls:
            try:
                calls[impl] = _call(check, inputs, impl, backward)
                calls[impl]()
            except torch.OutOfMemoryError:
                calls.pop(impl, None)
            except ValueError as error:
                if not backward or "it has no gradient" not in str(error):
                    raise
                calls.pop(impl, None)
        found["seconds"][what] = in_turns(calls, source.device)
    return found


def _call(check: Check, inputs: Inputs, impl: str, backward: bool) -> Callable[[], object]:
    """The call by itself, or with the gradients of what it gives. Caches that it writes are written again each time."""
    if not backward:
        return torch.no_grad()(partial(check.call, inputs, impl))
    inputs = inputs | {name: inputs[name].detach().requires_grad_() for name in check.wrt}
    wanted = [inputs[name] for name in check.wrt]

    def outputs() -> list[torch.Tensor]:
        outs = check.call(inputs, impl)
        return [x for x in (outs if isinstance(outs, tuple) else (outs,)) if x.requires_grad]

    grads = [torch.ones_like(x).uniform_(-1, 1) for x in outputs()]
    return lambda: torch.autograd.grad(outputs(), wanted, grads)


def _named(check: Check, inputs: Inputs, backward: bool) -> tuple[str, int]:
    """The kind and the octave of the call as its choice will see it."""
    try:
        check.call(inputs, ASKED)
    except Explained as asked:
        _, args, kwargs = asked.args
        return _verdicts.kind(check.op, args, kwargs, backward), _verdicts.octave(check.op, args)
    raise AssertionError(f"{check.op} returned without a choice")


def in_turns(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The median seconds of each call, one block of each in every round, each round beginning with another."""
    block = _gpu_block if device.type == "cuda" else _cpu_block
    count = {name: max(1, min(64, round(BLOCK / max(block(call, 1), 1e-7)))) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(ROUNDS):
        shift = number % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            taken[name].append(block(calls[name], count[name]))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _cpu_block(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def _gpu_block(call: Callable[[], object], times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SPIN)
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end) / times
