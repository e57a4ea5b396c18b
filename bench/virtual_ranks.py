"""Attention over P virtual ranks on one GPU against one plain call: what cutting, carrying and copying cost.

    python -m bench.virtual_ranks --device cuda [--out bench/results/GPU/virtual_ranks.jsonl] [--rounds 10]

Ranks are threads that compute on one stream; keys, values and their gradients are copies on another. The same work in
total, so a perfect ring takes as long as the plain call. ``exposed_ms`` are copies with no kernel beside them, from a
profiler's trace of one call. On a CPU only what a test needs: small, no copies on a stream of their own.
"""

import json
import tempfile
from pathlib import Path

import torch

import afn_kernels as ak
from afn_distributed.comm import in_threads
from afn_distributed.hybrid import SequenceParallel, sp_attention
from afn_distributed.plan import make_plan
from bench.measure import main
from bench.sequence_parallel import batches, boundaries
from bench.timing import clock, interleaved, quantile

HEADS, KV_HEADS, DIM = 28, 4, 128
RANKS = (2, 4, 8)


def inputs(total: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(total)
    options = {"generator": generator, "device": device, "dtype": torch.bfloat16}
    return [torch.randn(total, heads, DIM, **options) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]


def plain(cu, q, k, v, dout, backward: bool):
    """One call of attention, and its gradients."""
    leaves = [x.detach().requires_grad_(backward) for x in (q, k, v)]
    out = ak.attention(*leaves, cu_seqlens_q=cu, causal=True)
    return torch.autograd.grad(out, leaves, dout) if backward else out


def ringed(plan, parts, backward: bool):
    """The same over the ring's ranks, each with its tokens, as it would have them."""
    ranks = SequenceParallel.virtual(1, plan.ring)

    def work(p):
        # In this thread: the engine's own, one per GPU, would wait for messages that it has yet to send.
        with torch.autograd.set_multithreading_enabled(False):
            *leaves, dout = parts[p]
            leaves = [x.detach().requires_grad_(backward) for x in leaves]
            out = sp_attention(*leaves, plan, ranks[p], transport="ring")
            return torch.autograd.grad(out, leaves, dout) if backward else out

    return in_threads(work, plan.ranks)


def exposed(trace: list[dict]) -> dict[str, float]:
    """Milliseconds of a trace's kernels, of its copies on other streams, and of those with no kernel beside them.

    The stream that computes is the one with most kernel time.
    """
    work = [e for e in trace if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and e.get("dur")]
    busy: dict[int, float] = {}
    for event in work:
        if event["cat"] == "kernel":
            busy[event["args"]["stream"]] = busy.get(event["args"]["stream"], 0.0) + event["dur"]
    compute = max(busy, key=busy.get)
    spans = {True: [], False: []}
    for event in work:
        spans[event["args"]["stream"] == compute].append((event["ts"], event["ts"] + event["dur"]))
    kernels, copies = union(spans[True]), union(spans[False])
    hidden = sum(max(0.0, min(b, d) - max(a, c)) for a, b in copies for c, d in kernels)
    copied = sum(b - a for a, b in copies)
    times = {"kernel_ms": sum(b - a for a, b in kernels), "copy_ms": copied, "exposed_ms": copied - hidden}
    return {name: round(1e-3 * value, 4) for name, value in times.items()}


def checked(plan, parts, wanted: tuple[torch.Tensor, ...]) -> None:
    """What is wrong is not timed.

    Raises:
        ValueError: gradients over the ranks further from the plain call's than bfloat16 explains.
    """
    order = torch.argsort(torch.cat([plan.tokens(p) for p in range(plan.ranks)])).to(wanted[0].device)
    for one, theirs in zip(wanted, zip(*ringed(plan, parts, True), strict=True), strict=True):
        error = float((torch.cat(theirs)[order].float() - one.float()).abs().max() / one.float().abs().max())
        if not error < 0.03:
            raise ValueError(f"{plan.ring} ranks: gradients are off by {error:.3g} of the largest")


def union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans that overlap, joined."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def traced(call) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
        return exposed(json.loads(file.read_text())["traceEvents"])


def measure(rounds: int, device: str, contexts=(32_768, 131_072), ranks=RANKS) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    timer, rows = clock(device), []
    for context in contexts:
        for clips, cu in (("one", boundaries([context])), ("mix", next(batches(context, 1)))):
            cu_here, tensors = cu.to(device), inputs(int(cu[-1]), device)
            plans = {p: make_plan(cu, ring=p, head_dim=DIM) for p in ranks}
            parts = {
                p: [[x[plan.tokens(r).to(device)] for x in tensors] for r in range(p)] for p, plan in plans.items()
            }
            gradients = plain(cu_here, *tensors, True)
            for p, plan in plans.items():
                checked(plan, parts[p], gradients)
            for backward in (False, True):
                calls = {"plain": lambda _, b=backward, c=cu_here, t=tensors: plain(c, *t, b)}
                for p, plan in plans.items():
                    calls[str(p)] = lambda _, b=backward, plan=plan, own=parts[p]: ringed(plan, own, b)
                found = interleaved(timer, calls, copies=1, rounds=rounds, budget=60.0)
                base = quantile(found["plain"].device, 0.5)
                for name, timing in found.items():
                    row = {"tokens": int(cu[-1]), "clips": clips, "documents": len(cu) - 1, "backward": backward}
                    seconds = quantile(timing.device, 0.5)
                    row |= {"ranks": 1 if name == "plain" else int(name), "ms": round(1e3 * seconds, 4)}
                    row |= {"over_plain": round(seconds / base, 4)}
                    row |= {"host_ms": round(1e3 * quantile(timing.launch, 0.5), 3)}
                    if device == "cuda" and name != "plain":
                        row |= traced(lambda name=name, calls=calls: calls[name](0))
                    rows.append(row)
                    print(row, flush=True)
    return {"benchmark": "virtual_ranks", "rows": rows}


if __name__ == "__main__":
    main(__doc__, measure, rounds=10, devices=("cuda", "cpu"))
