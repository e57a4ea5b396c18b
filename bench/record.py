"""One workload to records: ours against named peers, checked before it is timed, with every column of a measurement."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import afn_kernels as ak
from afn_kernels import _triton
from afn_kernels._registry import ASKED, Explained, Explanation
from bench import accuracy, measure, timing
from bench.ops import Absent, Workload
from bench.sm90 import FLOPS, HBM

PASSES = ("forward", "forward+backward")
COLUMNS = (
    "op", "workload", "length", "pass", "variant", "role", "chosen", "dtype",
    "median_us", "p20_us", "p80_us", "rounds", "launch_us", "first_call_s", "peak_mb",
    "gb_s", "tflops", "floor_us", "of_floor", "of_reachable", "ratio_to_best_peer", "best_peer",
    "error", "error_at", "note", "absent",
)  # fmt: skip
WHOSE = {  # implementations that are not this library's kernels
    "flash3": "FlashAttention 3",
    "flash4": "FlashAttention 4",
    "flash": "PyTorch's FlashAttention 2",
    "varlen": "PyTorch's FlashAttention 2",
    "cudnn": "cuDNN",
    "sdpa": "PyTorch's fused attention",
    "matmul": "PyTorch's products",
    "reference": "plain PyTorch",
}
SAME = 0.02  # medians closer than this are the same
CPU_BYTES, CPU_FLOPS = 64 * 2**20, 5e10  # of the inputs and of the forward, in a CPU run
CPU_LENGTHS = (1024, 256, 64, 16, 4, 1)


@dataclass(frozen=True)
class Bench:
    """A device to measure on: its clock, and what its memory and matrix units reach today."""

    clock: timing.HostClock | timing.GPUClock
    copy_rate: float
    matmul_rate: float
    rounds: int = 20
    budget: float = 4.0  # seconds for the rounds of one workload and pass

    @property
    def device(self) -> str:
        return self.clock.device

    @classmethod
    def of(cls, device: str, **settings) -> Bench:
        clock = timing.clock(device)
        with suppress(Exception):  # without a compiler, which peers say themselves
            torch.compile(torch.neg)(
                torch.ones(64, device=device)
            )  # what a process pays once is no kernel's first call
        return cls(clock, timing.copy_rate(clock), timing.matmul_rate(clock), **settings)

    def reached(self) -> dict:
        return {"copy_gb_s": round(self.copy_rate / 1e9, 1), "matmul_tflops": round(self.matmul_rate / 1e12, 3)}


@dataclass(frozen=True)
class Variant:
    """One implementation: ours as "auto" picks it ("ours"), ours by name ("impl"), one's own ("also"), or a "peer"."""

    name: str
    role: str
    fn: Callable[[dict[str, Tensor]], object]


def fitted(work: Workload, device: str) -> tuple[Workload, int | None]:
    """The workload in the dtype and at the length it is run at, and that length where it was cut."""
    nothing = {"bytes": (0.0, 0.0), "flops": (0.0, 0.0)}  # floors are of 16-bit values on a GPU
    if device == "cuda":
        return (work if work.dtype.itemsize == 2 else replace(work, **nothing)), None
    work = replace(work, dtype=work.cpu_dtype)
    if work.exact:
        return replace(work, **nothing), None
    full = sum(x.numel() for x in work.make("meta", work.dtype).values())
    for length in CPU_LENGTHS if work.at else (None,):
        cut = work if length is None else replace(work.cut(length), **nothing)
        made = list(cut.make("meta", work.dtype).values())
        size = sum(x.nbytes for x in made)
        share = 1.0 if length is None else sum(x.numel() for x in made) / full  # at most linear, so at most these FLOP
        if size <= CPU_BYTES and share * work.flops[0] <= CPU_FLOPS:
            return cut, length
    raise Absent(f"too much for a CPU: its inputs take {size / 1e6:.0f} MB at the least")


def explained(work: Workload, inputs: dict[str, Tensor]) -> Explanation:
    """What the op's table says to this call, which is not run."""
    try:
        work.call(inputs, ASKED)
    except Explained as answer:
        return answer.args[0]
    raise AssertionError(f"{work} chose nothing")


def variants(work: Workload, explanation: Explanation) -> list[Variant]:
    """Ours first; then our other implementations, one's own, and the peers. The reference and the interpreter are
    nobody's choice for speed."""
    interpreted = ("triton",) if _triton.interpreted() else ()
    own = [Variant("ours", "ours", lambda i: work.call(i))]
    for row in explanation.rows:
        if row.status in ("possible", "avoided") and row.impl not in ("reference", *interpreted):
            own.append(Variant(f"impl={row.impl}", "impl", lambda i, impl=row.impl: work.call(i, impl)))
    own += [Variant(name, "also", lambda i, fn=fn: called(fn, i, work)) for name, fn in work.also.items()]
    return own + [Variant(name, "peer", fn) for name, fn in work.peers.items()]


def called(fn: Callable, inputs: dict[str, Tensor], work: Workload) -> object:
    """One's own op, which takes by name what ours takes."""
    theirs, ours = (inspect.signature(x).parameters for x in (fn, getattr(ak, work.op)))
    spare = {
        name for name, x in work.options.items() if name not in theirs and name in ours and x == ours[name].default
    }
    arguments = inputs | {name: x for name, x in work.options.items() if name not in spare}
    try:
        inspect.signature(fn).bind(**arguments)
    except TypeError as error:
        raise Absent(f"it does not take this call: {error}") from None
    return fn(**arguments)


def directed(fn: Callable, copies: list[dict], wrt: tuple[str, ...], directions: dict) -> Callable[[int], object]:
    """The function of a copy's number that is timed: outputs, or gradients along random directions made once."""
    if not wrt:
        return lambda i: fn(copies[i])

    def both(i: int):
        outs = [out for out in accuracy.as_tuple(fn(copies[i])) if out.requires_grad]
        if not outs:
            raise Absent("it has no backward: no output requires a gradient")
        key = (i, *((out.shape, out.stride(), out.dtype) for out in outs))
        if key not in directions:
            directions[key] = [torch.empty_like(out).normal_() for out in outs]
        return torch.autograd.grad(outs, [copies[i][name] for name in wrt], directions[key])

    return both


def restore(copies: list[dict], before: dict[str, Tensor], names: set[str]) -> None:
    """Gives inputs of these names the values that the first copy had."""
    for inputs in copies:
        for name in names:
            inputs[name].detach().copy_(before[name])


def label(record: dict) -> str:
    """A variant in a table: which implementation "auto" took, and whose that is where it is no kernel of ours."""
    if record["role"] == "ours":
        chosen = record["chosen"]
        return f"ours: auto took {chosen}" + (f" ({WHOSE[chosen]})" if chosen in WHOSE else "")
    name = record["variant"].removeprefix("impl=")
    if record["role"] == "impl":
        return f"ours: {name}" + (f" ({WHOSE[name]})" if name in WHOSE else "")
    return f"yours: {name}" if record["role"] == "also" else name


def why(error: Exception) -> str:
    """A peer's failure in one line."""
    if isinstance(error, Absent):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    text = str(error).strip().splitlines()
    return f"failed: {type(error).__name__}: {text[0][:200] if text else ''}"


def measured(
    work: Workload, which: str, bench: Bench, samples: bool = False, only: Container[str] | None = None
) -> list[dict]:
    """A record for every variant of a workload in one of ``PASSES``.

    Args:
        work: at its full shape; on a CPU it is cut.
        which: "forward" or "forward+backward".
        bench: the device.
        samples: whether records have the seconds of each round too.
        only: variants to run, by name; the others are not called.

    Returns:
        Dictionaries with ``COLUMNS``, None where there is nothing to say. ``absent`` is why one has no time. A workload
        that does not fit the device has one record.
    """
    base = dict.fromkeys(COLUMNS) | {"op": work.op, "workload": work.name, "pass": which}
    try:
        work, length = fitted(work, bench.device)
    except Absent as reason:
        return [base | {"variant": "ours", "role": "ours", "absent": str(reason)}]
    base |= {"length": length, "dtype": str(work.dtype).removeprefix("torch.")}
    wrt = work.wrt if which == "forward+backward" else ()
    with torch.set_grad_enabled(bool(wrt)):
        return [base | found for found in _measured(work, wrt, bench, samples, only)]


def _measured(
    work: Workload, wrt: tuple[str, ...], bench: Bench, samples: bool, only: Container[str] | None
) -> list[dict]:
    torch.manual_seed(0)
    torch._dynamo.reset()  # else the shapes of other workloads count towards its limit of recompilations

    def make() -> dict[str, Tensor]:
        return {name: x.requires_grad_(name in wrt) for name, x in work.make(bench.device, work.dtype).items()}

    copies = [make()]
    before = accuracy.copied(copies[0])
    copies += [make() for _ in range(timing.copies(bench.clock, sum(x.nbytes for x in copies[0].values())) - 1)]
    directions: dict = {}
    calls, records, distances, found = {}, {}, [], None
    writes: dict[str, set[str]] = {}
    if only is None or "ours" in only:  # before anything else is asked: its first call is one of the columns
        first_call, found = timing.first(bench.clock, directed(work.call, copies, wrt, directions))
    explanation = explained(work, copies[0])

    def listed(work: Workload) -> list[Variant]:
        return [x for x in variants(work, explanation) if only is None or x.name in only]

    for variant in listed(work):
        record = records[variant.name] = {"variant": variant.name, "role": variant.role}
        call = directed(variant.fn, copies, wrt, directions)
        try:
            seconds, other = timing.first(bench.clock, call)
            if variant.role == "peer" and found is not None:
                distances.append(accuracy.apart(found, other))
            del other
            peak = bench.clock.peak(call)
        except Exception as error:
            if variant.role == "ours":
                raise
            record["absent"] = why(error)
            continue
        finally:
            writes[variant.name] = accuracy.changed(copies[0], before)
            restore(copies[:1], before, writes[variant.name])
        if variant.role == "ours":
            seconds = first_call
            record["chosen"] = explanation.chosen
        record |= {"first_call_s": round(seconds, 3), "peak_mb": None if peak is None else round(peak / 1e6, 1)}
        calls[variant.name] = call
    del found

    def functions(work: Workload) -> dict[str, Callable]:
        return {variant.name: variant.fn for variant in listed(work) if variant.name in calls}

    peers = {name for name in calls if records[name]["role"] == "peer"}
    checked = accuracy.checked(work, functions, peers, wrt, bench.device)
    distances = [x for x in distances if x is not None]
    for name, record in records.items():
        error = checked.error.get(name)
        record |= {"error": None if error is None else float(f"{error:.2e}"), "error_at": checked.at}
        record["note"] = checked.notes.get(name)
        if name in checked.wrong:
            record["absent"] = f"wrong, so not timed: {checked.wrong[name]}"
    writes = {name: names - checked.written for name, names in writes.items() if names - checked.written}
    for name in calls.keys() & writes.keys() if checked.at else ():
        text, record = f"it writes its input {', '.join(sorted(writes[name]))}", records[name]
        if name in peers:
            record["note"] = "; ".join(filter(None, (record["note"], text)))
        else:
            record["absent"] = f"wrong, so not timed: {text}"
    if checked.at != accuracy.TIMED and distances and min(distances) > accuracy.APART:
        records["ours"]["absent"] = f"wrong, so not timed: {min(distances):.1e} away from every peer"
    times = timing.interleaved(
        bench.clock,
        {name: call for name, call in calls.items() if "absent" not in records[name]},
        len(copies),
        bench.rounds,
        bench.budget,
        {name: partial(restore, copies, before, names) for name, names in writes.items()},
    )
    for name, timed in times.items():
        records[name] |= speeds(work, bool(wrt), timed, bench) | ({"samples": timed.device} if samples else {})
    compare_with_peers(records)
    return list(records.values())


def speeds(work: Workload, backward: bool, timed: timing.Timing, bench: Bench) -> dict:
    """The columns that follow from the times, the workload's bytes and operations, and the device."""
    median, p20, p80 = (timing.quantile(timed.device, q) for q in (0.5, 0.2, 0.8))
    found = {"median_us": median, "p20_us": p20, "p80_us": p80}
    found = {name: round(1e6 * value, 3) for name, value in found.items()}
    found["rounds"] = len(timed.device)
    if bench.device == "cuda":
        found["launch_us"] = round(1e6 * timing.quantile(timed.launch, 0.5), 2)
    directions = 2 if backward else 1
    moved, flops = sum(work.bytes[:directions]), sum(work.flops[:directions])
    if moved:
        found["gb_s"] = round(moved / median / 1e9, 1)
    if flops:
        found["tflops"] = round(flops / median / 1e12, 3)
    bandwidth = HBM.get(measure.results(bench.device).name)
    for column, memory, matrix in (
        ("of_floor", bandwidth, FLOPS),
        ("of_reachable", bench.copy_rate, bench.matmul_rate),
    ):
        if memory and (moved or flops):
            each = zip(work.bytes[:directions], work.flops[:directions], strict=True)
            floor = sum(max(b / memory, f / (matrix * work.rate)) for b, f in each)
            found[column] = float(f"{floor / median:.3g}")
            if column == "of_floor":
                found["floor_us"] = round(1e6 * floor, 2)
    return found


def compare_with_peers(records: dict[str, dict]) -> None:
    """The best peer's time over each variant's: above 1 is faster than every peer."""
    peers = {x["variant"]: x["median_us"] for x in records.values() if x["role"] == "peer" and x.get("median_us")}
    if not peers:
        return
    best = min(peers, key=peers.get)
    for record in records.values():
        if record.get("median_us"):
            record |= {"best_peer": best, "ratio_to_best_peer": round(peers[best] / record["median_us"], 3)}


def verdict(ours: dict, best: dict | None) -> str:
    """Ours against the best peer (or any record against another) in a word. Noise is where the ranges from p20 to p80
    meet."""
    if best is None:
        return "no peer"
    ratio = best["median_us"] / ours["median_us"]
    if abs(ratio - 1) <= SAME:
        return "equal"
    if ours["p20_us"] <= best["p80_us"] and best["p20_us"] <= ours["p80_us"]:
        return "within noise"
    return "faster" if ratio > 1 else "loses"
