"""Rows with times: ours from a CUDA graph at a goal's shape, and ours against the peers that are here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from afn_kernels import _verdicts
from bench import accuracy, record, timing
from bench.first.child import COMPILE, DEVICE, alone, preparing, say, told, verdicts
from bench.first.plan import GOALS, MORE
from bench.ops import Absent, Workload, workloads
from bench.shapes import factories

LEFT_OUT = ("torch.compile", "torch efficient", "transformers", "torchaudio")  # they compile, are slow, or not kernels
OURS = ("ours", "impl=triton", "impl=cuda")
SECONDS = 3.5 if DEVICE == "cuda" else 0.3  # for the rounds of a row
ROUNDS = 10
TOY = {"rows": 24, "width": 128, "classes": 300, "tokens": 24, "context": 300, "windows": 2, "samples": 3200,
       "heads": 4, "kv_heads": 2}  # fmt: skip  # sizes of a rehearsal


def workload(name: str) -> tuple[Workload, str]:
    """A row of the plan: its workload and pass. A name that no workload has any more is an error here."""
    op, begins, which = (GOALS | MORE)[name]
    found = next((x for x in workloads() if x.op == op and x.name == begins), None)
    found = found or next((x for x in workloads() if x.op == op and x.name.startswith(begins)), None)
    if found is None:
        raise LookupError(f"bench.ops has no workload of {op} whose name begins with {begins!r}")
    return found, which


def fitted(work: Workload) -> tuple[Workload, int | None]:
    """The workload, or one of its sizes that a CPU can take, under its name, and how long that one is."""
    if DEVICE == "cuda" or COMPILE:
        return work, None
    make = next(x for op, x, defaults in factories() if op == work.op and defaults.keys() == work.sizes.keys())
    toy = {name: min(TOY[name], x) for name, x in work.sizes.items() if name in TOY and not isinstance(x, bool)}
    if "lengths" in work.sizes:
        toy["lengths"] = (61,) if len(work.sizes["lengths"]) == 1 else (37, 24)
    small = make(**(work.sizes | toy))
    return replace(small, name=work.name, dtype=work.cpu_dtype, bytes=(0.0, 0.0), flops=(0.0, 0.0)), TOY["rows"]


def bench() -> record.Bench:
    """The device with what it reached when this run began."""
    reached = next((x for x in told() if x["kind"] == "ceilings"), {"copy_gb_s": 0.0, "matmul_tflops": 0.0})
    clock = timing.clock(DEVICE)
    return record.Bench(clock, 1e9 * reached["copy_gb_s"], 1e12 * reached["matmul_tflops"], ROUNDS, SECONDS)


def usable(op: str, impl: str, judged: bool = True) -> str:
    """Why part A does not let an implementation be timed; empty when it does. Its own rows also take the unjudged."""
    right, wrong = verdicts(told())
    if (op, impl) in wrong:
        return "part A found it wrong"
    return "" if (op, impl) in right or not judged else "part A did not find it right"


def directed(fn: Callable, copies: list[dict], wrt: tuple[str, ...]) -> Callable[[int], object]:
    """The function of a copy's number that is timed: outputs, or gradients along directions that are the same for all.

    They have the strides of the outputs, which implementations choose, and their values have not.
    """
    if not wrt:
        return lambda i: fn(copies[i])
    given: dict[int, list[torch.Tensor]] = {}

    def both(i: int):
        outs = [out for out in accuracy.as_tuple(fn(copies[i])) if out.requires_grad]
        if not outs:
            raise Absent("it has no backward: no output requires a gradient")
        if i not in given:
            given[i] = [torch.empty_like(out).copy_(_direction(out, seed)) for seed, out in enumerate(outs)]
        return torch.autograd.grad(outs, [copies[i][name] for name in wrt], given[i])

    return both


def _direction(out: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator(out.device).manual_seed(seed)
    return torch.randn(out.shape, generator=generator, device=out.device, dtype=torch.float32)


class Row:
    """A workload's calls, compiled and run once.

    Args:
        work: as bench.ops has it.
        which: "forward" or "forward+backward".
        peers: whether others' are called too.
    """

    def __init__(self, work: Workload, which: str, peers: bool):
        torch.manual_seed(0)
        self.device, (self.work, self.length) = bench(), fitted(work)
        self.wrt = work.wrt if which == "forward+backward" else ()
        self.base = dict.fromkeys(record.COLUMNS) | {"op": work.op, "workload": work.name, "pass": which}
        self.base |= {"length": self.length, "dtype": str(self.work.dtype).removeprefix("torch.")}
        self.records: dict[str, dict] = {}
        self.calls: dict[str, Callable[[int], object]] = {}
        made = self.inputs()
        count = timing.copies(self.device.clock, sum(x.nbytes for x in made.values()))
        self.copies = [made, *(self.inputs() for _ in range(min(count, 8) - 1))]
        self.before, self.writes = accuracy.copied(made), {}
        explanation, found = record.explained(self.work, made), None
        for variant in record.variants(self.work, explanation):
            if variant.name in LEFT_OUT or not (peers or variant.name in OURS):
                continue
            one = self.records[variant.name] = {"variant": variant.name, "role": variant.role}
            impl = explanation.chosen if variant.role == "ours" else variant.name.removeprefix("impl=")
            if variant.role == "ours":
                one["chosen"] = impl
            if variant.role != "peer" and (why := usable(work.op, impl, judged=peers)):
                one["absent"] = f"{impl}: {why}"
                continue
            call = directed(variant.fn, self.copies, self.wrt)
            try:
                seconds, other = timing.first(self.device.clock, call)
                if found is None and variant.role != "peer":
                    found = other
                elif (apart := accuracy.apart(found, other)) is not None:
                    one["note"] = f"{apart:.1e} from {next(iter(self.calls))}"
                    if apart > accuracy.APART:
                        one["absent"] = f"wrong, so not timed: {one['note']}"
                        continue
                one |= {"first_call_s": round(seconds, 3), "peak_mb": self.device.clock.peak(call)}
                self.calls[variant.name] = call
            except Exception as error:
                one["absent"] = record.why(error)
            finally:
                if changed := accuracy.changed(made, self.before):
                    self.writes[variant.name] = changed
                    record.restore([made], self.before, changed)
        for one in self.records.values():
            if one.get("peak_mb") is not None:
                one["peak_mb"] = round(one["peak_mb"] / 1e6, 1)

    def inputs(self) -> dict[str, torch.Tensor]:
        made = self.work.make(DEVICE, self.work.dtype)
        return {name: x.requires_grad_(name in self.wrt) for name, x in made.items()}

    def say(self, kind: str, times: dict[str, timing.Timing], **more) -> None:
        for name, timed in times.items():
            self.records[name] |= record.speeds(self.work, bool(self.wrt), timed, self.device)
        record.compare_with_peers(self.records)
        for one in self.records.values():
            say(kind, **(self.base | one), **more)


def replayed(call: Callable[[int], object], count: int) -> Callable[[int], object]:
    """The call on each copy of the inputs as a CUDA graph of one call each."""
    graphs = []
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(count):
            call(i)
    torch.cuda.current_stream().wait_stream(stream)
    for i in range(count):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):  # else one that fails stays on it
            out = call(i)
        graphs.append((graph, out))
    return lambda i: graphs[i][0].replay()


def goal(name: str) -> int:
    """Ours alone."""
    work, which = workload(name)
    if COMPILE:
        return compiled(work)
    with torch.set_grad_enabled(which != "forward"):
        with preparing():
            row = Row(work, which, peers=False)
            clock, calls, how = "events", row.calls, ""
            count = min(4, len(row.copies))
            if DEVICE == "cuda" and calls:
                try:
                    calls, clock = {x: replayed(call, count) for x, call in calls.items()}, "graph"
                except Exception as error:
                    how = _verdicts.one_line(error)
                    torch.cuda.synchronize()
        with alone():
            times = timing.interleaved(row.device.clock, calls, count, ROUNDS, 1.5)
    row.say("goal", times, goal=name, clock=clock if DEVICE == "cuda" else "host", not_captured=how)
    return 0


def peers(name: str) -> int:
    """Ours and others', in turns."""
    work, which = workload(name)
    if COMPILE:
        return compiled(work)
    with torch.set_grad_enabled(which != "forward"):
        with preparing():
            row = Row(work, which, peers=True)
        restore = {x: partial(record.restore, row.copies, row.before, names) for x, names in row.writes.items()}
        with alone():
            began = time.perf_counter()
            times = timing.interleaved(row.device.clock, row.calls, len(row.copies), ROUNDS, SECONDS, restore)
    row.say("peers", times, row=name, timing_s=round(time.perf_counter() - began, 2))
    return 0


def compiled(work: Workload, impl: str = "triton") -> int:
    """Compiles what a workload launches at its real shape, for sm_90a."""
    from bench.first.compilation import compiling
    from bench.sm90.launches import gradients_of

    with compiling(f"{work.op}, {work.name}"):
        gradients_of(work, impl)
    return 0
