"""Rows of configuration tables that nobody has timed, in turns on one workload."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from afn_kernels import _verdicts
from bench import accuracy, record, timing
from bench.first.child import COMPILE, DEVICE, alone, preparing, say
from bench.first.figures import ROUNDS, SECONDS, bench, compiled, directed, fitted, usable, workload
from bench.first.plan import SWEEPS

Change = dict[str, int]


@dataclass(frozen=True)
class Sweep:
    """
    Args:
        row: of the plan, whose workload is run.
        modules: of afn_kernels, that have the function.
        function: gives the configuration, a dataclass or a number.
        changes: of its fields; a number's has no name. The table's own row comes first, unchanged.
        first: what the function's first argument must be for the change to apply.
    """

    row: str
    modules: tuple[str, ...]
    function: str
    changes: tuple[Change, ...]
    first: str = ""


def _tiles(*rows: tuple[int, int, int, int]) -> tuple[Change, ...]:
    return tuple(dict(zip(("queries", "keys", "warps", "stages"), row, strict=True)) for row in rows)


FORWARD = ("attention.triton", "attention.schedule")
TABLE = {
    "attention_forward_128": Sweep(
        "attention_16k", FORWARD, "choose",
        (*_tiles((128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 8, 4)),
         {"queries": 128, "keys": 64, "warps": 4, "stages": 2, "lean": True}), "forward",
    ),
    "attention_forward_64": Sweep(
        "attention_encoder", FORWARD, "choose",
        _tiles((128, 64, 8, 3), (64, 64, 4, 3), (128, 64, 4, 2), (64, 128, 4, 2), (128, 128, 8, 2)), "forward",
    ),
    "attention_dkv_128": Sweep(
        "attention_16k_backward", ("attention.triton_backward", "attention.schedule"), "choose",
        ({"stages": 1}, {"stages": 2}, {"stages": 3}), "dkv",
    ),
    "rms_norm_backward": Sweep("rms_norm", ("rms_norm.triton",), "choose", ({"waves": 2}, {"waves": 3}, {"waves": 4})),
    "layer_norm_forward": Sweep(
        "layer_norm", ("layer_norm.triton",), "choose",
        ({"forward": 1}, {"forward": 2}, {"forward": 4}, {"forward": 8}),
    ),
    "decode_attention": Sweep(
        "decode_45k", ("decode_attention.triton",), "choose",
        ({"waves": 1, "least": 64}, {"waves": 1, "least": 256}, {"waves": 2, "least": 128}, {"waves": 3, "least": 128}),
    ),
    "lce_chunk": Sweep(
        "lce_8k", ("linear_cross_entropy.config",), "chunk_rows", tuple({"": rows} for rows in (1024, 1152, 1536)),
    ),
}  # fmt: skip
assert TABLE.keys() == SWEEPS.keys()


@contextmanager
def changed(sweep: Sweep, change: Change) -> Iterator[None]:
    """Within it, the configuration has other values.

    Raises:
        TypeError: it has no field of such a name.
    """
    before = {}

    def wrapped(original: Callable) -> Callable:
        def choose(*args, **kwargs):
            found = original(*args, **kwargs)
            if sweep.first and args[0] != sweep.first:
                return found
            return change[""] if "" in change else dataclasses.replace(found, **change)

        return choose

    for name in sweep.modules:
        module = importlib.import_module(f"afn_kernels.{name}")
        before[module] = getattr(module, sweep.function)
        setattr(module, sweep.function, wrapped(before[module]))
    try:
        yield
    finally:
        for module, original in before.items():
            setattr(module, sweep.function, original)


def named(change: Change) -> str:
    return " ".join(f"{name}={x}" if name else str(x) for name, x in change.items()) or "as the table has it"


def sweep(name: str) -> int:
    """Each change's time, and how far its result is from the unchanged one's."""
    found = TABLE[name]
    work, which = workload(found.row)
    everything: tuple[Change, ...] = ({}, *found.changes)
    if COMPILE:
        for change in everything:
            try:
                with changed(found, change) if change else nullcontext():
                    compiled(dataclasses.replace(work, name=f"{work.name}, {named(change)}"))
            except Exception as error:
                say("compiled", what=f"{name}, {named(change)}", status="failed", why=_verdicts.one_line(error))
        return 0
    if DEVICE == "cuda" and (why := usable(work.op, "triton")):
        say("sweep", sweep=name, op=work.op, status="skipped", why=f"triton: {why}")
        return 0
    work, _ = fitted(work)
    with torch.set_grad_enabled(which != "forward"):
        with preparing():
            calls, expected = prepare(name, found, work, which, everything)
        if DEVICE == "cpu":
            return 0
        with alone():
            times = timing.interleaved(timing.clock(DEVICE), calls, 1, ROUNDS, 1.5 * SECONDS)
    for text, timed in times.items():
        median, p20, p80 = (round(1e6 * timing.quantile(timed.device, q), 2) for q in (0.5, 0.2, 0.8))
        say("sweep", sweep=name, op=work.op, workload=work.name, change=text, status="ok", apart=expected.get(text),
            median_us=median, p20_us=p20, p80_us=p80, rounds=len(timed.device))  # fmt: skip
    return 0


def prepare(name: str, found: Sweep, work, which: str, everything: tuple[Change, ...]):
    """(calls by the change's name, their distances from the unchanged one); what fails is a line and no call."""
    torch.manual_seed(0)
    wrt = work.wrt if which == "forward+backward" else ()
    inputs = {x: t.requires_grad_(x in wrt) for x, t in work.make(DEVICE, work.dtype).items()}
    device, calls, apart, first = bench(), {}, {}, None
    for change in everything:
        bare = directed(lambda i: work.call(i, "triton"), [inputs], wrt)

        def call(i: int, bare=bare, change=change):
            with changed(found, change) if change else nullcontext():
                return bare(i)

        text = named(change)
        try:
            _, out = timing.first(device.clock, call)
        except Exception as error:
            say(
                "sweep", sweep=name, op=work.op, workload=work.name, change=text, status="failed", why=record.why(error)
            )
            continue
        first = out if first is None else first
        apart[text] = accuracy.apart(first, out)
        calls[text] = call
        if DEVICE == "cpu":
            say("sweep", sweep=name, op=work.op, workload=work.name, change=text, status="ok", apart=apart[text],
                why="in the interpreter: no time")  # fmt: skip
    return calls, apart
