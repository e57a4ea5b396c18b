"""pytest bench --device cuda -k rms_norm: every op against its peers, in pytest-benchmark's tables.

The samples are those of python -m bench.run, taken in turns and on the GPU's own clock; a group per workload and pass.
What computes the wrong thing fails and has no time; a peer that is not here is skipped with the reason.
"""

from functools import lru_cache

import pytest

from bench.ops import workloads
from bench.record import PASSES, Bench, measured
from bench.run import should_have_run

WORKLOADS = workloads()
CALLS = [
    pytest.param(number, which, variant, id=f"{work}-{which}-{variant}")
    for number, work in enumerate(WORKLOADS)
    for which in (PASSES if work.wrt else PASSES[:1])
    for variant in ("ours", *work.peers)
]


class Replay:
    """A timer that stands at the end of the samples replayed so far."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


clock = Replay()


@lru_cache(1)
def bench(device: str) -> Bench:
    return Bench.of(device, budget=4.0 if device == "cuda" else 1.0)


@lru_cache(1)  # the variants of a workload follow each other
def records(number: int, which: str, device: str) -> dict[str, dict]:
    return {record["variant"]: record for record in measured(WORKLOADS[number], which, bench(device), samples=True)}


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(("number", "which", "variant"), CALLS)
def test_op(benchmark, request, number, which, variant):
    found = records(number, which, request.config.getoption("--device"))
    record = found.get(variant, found["ours"])
    if should_have_run(record):
        pytest.fail(record["absent"])
    if record["absent"]:
        pytest.skip(record["absent"])
    benchmark.group = f"{WORKLOADS[number]}, {which}"
    samples = record.pop("samples")
    benchmark.extra_info |= record
    remaining = iter(samples)
    benchmark.pedantic(lambda: clock.advance(next(remaining)), rounds=len(samples))
