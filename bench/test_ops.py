"""pytest bench --device cuda -k rms_norm: every op against its peers, in pytest-benchmark's tables.

The samples are those of python -m bench.run, taken in turns and on the GPU's own clock; a group per workload and pass.
An id names what is run. What computes the wrong thing, a peer too, fails and has no time; a peer that is not here is
skipped with the reason. What is not selected is not run. docs/benchmarking.md
"""

import re
from functools import lru_cache

import pytest

from afn_kernels._registry import OPS
from bench.ops import Absent, Workload
from bench.record import PASSES, Bench, fitted, label, measured
from bench.run import chosen, should_have_run
from bench.shapes import PASS_IDS, in_words, shape_id

INTERPRETED = ("triton", "cuda")  # implementations that a CPU does not run


class Replay:
    """A timer that stands at the end of the samples replayed so far."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


clock = Replay()
CHOSEN: list[Workload] = []  # of this run; a test has the number of one


@lru_cache(1)
def bench(device: str, rounds: int, budget: float | None) -> Bench:
    return Bench.of(device, rounds=rounds, budget=budget or (4.0 if device == "cuda" else 1.0))


def pytest_generate_tests(metafunc):
    if "variant" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    device = option("--device")
    CHOSEN[:] = chosen(device, shapes=option("--shape"), also=option("--also"))
    calls = []
    for number, work in enumerate(CHOSEN):
        try:
            name = shape_id(*fitted(work, device), device)
        except Absent:
            name = shape_id(work, None, device)
        for which in PASSES if work.wrt else PASSES[:1]:
            for variant in ("ours", *implementations(work.op, device), *work.also, *work.peers):
                last = re.sub(r"[^\w.]+", "_", variant)
                calls.append(pytest.param(number, which, variant, id=f"{name}-{PASS_IDS[which]}-{last}"))
    metafunc.parametrize(("number", "which", "variant"), calls)


def implementations(op: str, device: str) -> list[str]:
    """Ours by name, as far as this machine may have them: "auto" may choose somebody else's kernel."""
    rows = OPS[op].impls if op in OPS else ()
    names = [row.name for row in rows if row.name != "reference" and not row.available()]
    return [f"impl={name}" for name in names if device == "cuda" or name not in INTERPRETED]


@lru_cache(1)
def selection(session) -> dict[tuple, frozenset[str]]:
    """(workload, pass) to the variants that are left of it after -k and the like."""
    found: dict = {}
    for item in session.items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "variant" in params:
            found.setdefault((params["number"], params["which"]), set()).add(params["variant"])
    return {key: frozenset(names) for key, names in found.items()}


@lru_cache(1)  # the variants of a workload follow each other
def records(number: int, which: str, only: frozenset[str], bench: Bench) -> dict[str, dict]:
    return {x["variant"]: x for x in measured(CHOSEN[number], which, bench, samples=True, only=only)}


@pytest.mark.benchmark(timer=clock)
def test_op(benchmark, request, number, which, variant):
    option = request.config.getoption
    device = option("--device")
    only = selection(request.session)[number, which]
    found = records(number, which, only, bench(device, option("--rounds"), option("--budget")))
    if variant not in found and (found.get("ours") or {}).get("absent"):
        pytest.skip(found["ours"]["absent"])
    if variant not in found:
        pytest.skip("auto took it for this call, or it cannot run it: afn_kernels.explain says which")
    record = found[variant]
    if should_have_run(record):
        pytest.fail(record["absent"], pytrace=False)
    if record["absent"]:
        pytest.skip(record["absent"])
    benchmark.group = f"{in_words(*fitted(CHOSEN[number], device), device)}, {which}"
    benchmark.name = label(record)
    benchmark.extra_info |= {name: value for name, value in record.items() if name != "samples"}
    remaining = iter(record["samples"])
    benchmark.pedantic(lambda: clock.advance(next(remaining)), rounds=len(record["samples"]))
