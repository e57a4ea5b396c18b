"""What sequence parallelism costs and keeps, on one CPU: errors, balance, time to plan, bytes. JSON lines.

    python -m bench.sequence_parallel [--out results.jsonl] [--rounds 20]

Ranks are threads of this process, which send each other the messages that processes would. Errors are those of the
output and all gradients of attention, relative to the largest value, against one rank in float64.
"""

import itertools
import time

import numpy as np
import torch
from afn_distributed.comm import in_threads
from afn_distributed.hybrid import SequenceParallel, sp_attention
from afn_distributed.plan import make_plan

import afn_kernels as ak
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


def attention(cu: torch.Tensor, parts: list[torch.Tensor], ulysses: int, ring: int) -> tuple[list, list[int], object]:
    """Output and gradients in the order of the batch, the bytes each rank sent, and the plan."""
    plan = make_plan(cu, ulysses=ulysses, ring=ring, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM)
    ranks = SequenceParallel.virtual(ulysses, ring)

    def work(rank: int) -> list[torch.Tensor]:
        tokens = plan.tokens(rank)
        leaves = [x[tokens].clone().requires_grad_() for x in parts[:3]]
        out = sp_attention(*leaves, plan, ranks[rank])
        out.backward(parts[3][tokens])
        return [out.detach(), *(x.grad for x in leaves)]

    found = in_threads(work, plan.ranks)
    order = torch.argsort(torch.cat([plan.tokens(rank) for rank in range(plan.ranks)]))
    return (
        [torch.cat(some)[order] for some in zip(*found, strict=True)],
        [one.ulysses.sent + one.ring.sent for one in ranks],
        plan,
    )


def worst(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def errors() -> list[dict]:
    cu, generator = boundaries(LENGTHS), torch.Generator().manual_seed(0)
    sizes = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    exact = [torch.randn(sum(LENGTHS), h, DIM, generator=generator, dtype=torch.float64) for h in sizes]
    rows = []
    for dtype in (torch.float64, torch.bfloat16):
        parts = [x.to(dtype) for x in exact]
        leaves = [x.double().clone().requires_grad_() for x in parts[:3]]
        out = ak.attention(*leaves, cu_seqlens_q=cu, causal=True, impl="reference")
        out.backward(parts[3].double())
        wanted = [out.detach(), *(x.grad for x in leaves)]
        for ulysses, ring in [(1, 1), *SPLITS]:
            found, sent, _ = attention(cu, parts, ulysses, ring)
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
