"""What sequence parallelism costs and keeps, on one CPU: errors, balance, time to plan, bytes. JSON lines.

    python -m bench.sequence_parallel [--out results.jsonl] [--rounds 20]

Ranks are threads of this process, which send each other the messages that processes would. Errors are those of the
output and all gradients of attention, relative to the largest value, against one rank in float64.
"""

import itertools
import time

import numpy as np
import torch

import afn_kernels as ak
from afn_distributed.comm import in_threads
from afn_distributed.hybrid import SequenceParallel, sp_attention
from afn_distributed.plan import make_plan
from bench.measure import main
from bench.packing import mix

HEADS, KV_HEADS, DIM = 28, 4, 16
LENGTHS = [300, 41, 171, 1, 0, 260]
SPLITS = [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4), (7, 1), (4, 2), (2, 4), (8, 1), (1, 8), (14, 1), (28, 1), (1, 16)]


def boundaries(lengths) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def batches(context: int, count: int):
    """Boundaries of packed batches of realistic lengths."""
    lengths = iter(mix(400 * count, context).tolist())
    for _ in range(count):
        documents, room = [], context
        for length in lengths:
            if length > room:
                break
            documents.append(length)
            room -= length
        yield boundaries(documents)


def one_process(cu, q, k, v, dout) -> list[torch.Tensor]:
    """out, dq, dk, dv of attention by the reference."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = ak.attention(*leaves, cu_seqlens_q=cu, causal=True, impl="reference")
    out.backward(dout)
    return [out.detach(), *(x.grad for x in leaves)]


def one_rank(ranks, plan, q, k, v, dout, transport="ring") -> list[torch.Tensor]:
    """The same for the tokens of one rank."""
    tokens = plan.tokens(ranks.rank)
    leaves = [x[tokens].clone().requires_grad_() for x in (q, k, v)]
    out = sp_attention(*leaves, plan, ranks, transport=transport)
    out.backward(dout[tokens])
    return [out.detach(), *(x.grad for x in leaves)]


def over_threads(cu, parts, ulysses, ring, scheme="balanced", transport="ring", sent=None) -> list[torch.Tensor]:
    """The same for the whole batch from ranks that are threads; ``sent`` gets the bytes that each of them sent."""
    q, k = parts[:2]
    sizes = {"heads": q.shape[1], "kv_heads": k.shape[1], "head_dim": q.shape[2]}
    plan = make_plan(cu, ulysses=ulysses, ring=ring, **sizes, scheme=scheme)
    ranks = SequenceParallel.virtual(ulysses, ring)
    found = in_threads(lambda p: one_rank(ranks[p], plan, *parts, transport), plan.ranks)
    if sent is not None:
        sent += [one.ulysses.sent + one.ring.sent for one in ranks]
    tokens = torch.cat([plan.tokens(p) for p in range(plan.ranks)])
    order = torch.argsort(tokens)
    return [torch.cat(some)[order] for some in zip(*found, strict=True)]


def worst(found, wanted) -> float:
    """Largest error of out, dq, dk, dv, each relative to its largest value."""
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def errors() -> list[dict]:
    cu, generator = boundaries(LENGTHS), torch.Generator().manual_seed(0)
    sizes = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    exact = [torch.randn(sum(LENGTHS), h, DIM, generator=generator, dtype=torch.float64) for h in sizes]
    rows = []
    for dtype in (torch.float64, torch.bfloat16):
        parts = [x.to(dtype) for x in exact]
        wanted = one_process(cu, *(x.double() for x in parts))
        for ulysses, ring in [(1, 1), *SPLITS]:
            sent: list[int] = []
            found = over_threads(cu, parts, ulysses, ring, sent=sent)
            row = {"dtype": str(dtype).removeprefix("torch."), "ulysses": ulysses, "ring": ring}
            rows.append(row | {"worst_error": worst(found, wanted), "bytes_sent": sum(sent)})
    return rows


def balance(rounds: int) -> list[dict]:
    rows = []
    for context, ranks in itertools.product((24_576, 131_072), (8, 64, 128)):
        for ulysses in (1, 2, 4, 7) if ranks % 7 == 0 else (1, 2, 4):
            found, spent = [], []
            for cu in batches(context, rounds):
                start = time.perf_counter()
                plan = make_plan(cu, ulysses=ulysses, ring=ranks // ulysses)
                for source in range(plan.ring):
                    plan.exchange(0, source)
                spent.append(time.perf_counter() - start)
                found.append(plan.imbalance())
            row = {"context": context, "ranks": ranks, "ulysses": ulysses, "batches": len(found)}
            row |= {
                "worst_work": round(max(w for w, _ in found), 4),
                "worst_tokens": round(max(t for _, t in found), 4),
            }
            rows.append(row | {"plan_ms": round(1e3 * sorted(spent)[len(spent) // 2], 3)})
    return rows


def planning(rounds: int) -> dict:
    """Milliseconds to plan a thousand documents at 128 ranks, one rank's exchanges included."""
    cu = boundaries(np.random.default_rng(0).integers(10, 250, 1000).tolist())
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        plan = make_plan(cu, ulysses=4, ring=32)
        for source in range(32):
            plan.exchange(3, source)
        spent.append(time.perf_counter() - start)
    return {"documents": 1000, "ranks": 128, "median_ms": round(1e3 * sorted(spent)[rounds // 2], 3)}


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    record = {
        "benchmark": "sequence_parallel",
        "errors": errors(),
        "balance": balance(rounds),
        "plan": planning(rounds),
    }
    for rows in (record["errors"], record["balance"], [record["plan"]]):
        for row in rows:
            print(row)
    return record


if __name__ == "__main__":
    main(__doc__, measure, rounds=20)
