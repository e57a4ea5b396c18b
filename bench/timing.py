"""How long a call takes: on a GPU by its own events, on a CPU by the process's clock; cold inputs, variants in turns.

On a GPU a block of calls waits behind a kernel that only spins, so that all of it is queued before the first event and
no launch latency is in the time. Before a block the L2 cache is read full of something else, and each call of the block
has a copy of the inputs of its own. The host's time to queue the block, over its calls, is the cost of a launch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

BLOCK_SECONDS = 2e-3  # what a block of short calls should last


def quantile(values: Iterable[float], q: float) -> float:
    """Linear interpolation between the sorted values, as NumPy's default."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


@dataclass
class Timing:
    """Seconds per call, one sample per round: ``device`` of the work itself, ``launch`` of the host to queue it."""

    device: list[float] = field(default_factory=list)
    launch: list[float] = field(default_factory=list)


class HostClock:
    """perf_counter: what a call does is done when it returns."""

    device = "cpu"
    cache = 16 * 2**20
    memory = 512 * 2**20  # for copies of the inputs

    def wait(self) -> None: ...

    def block(self, call: Callable[[int], object], calls: int) -> tuple[float, float]:
        """Seconds per call of ``call(0)``, …, ``call(calls - 1)``, and of the host to queue one (here the same)."""
        start = time.perf_counter()
        for i in range(calls):
            call(i)
        seconds = (time.perf_counter() - start) / calls
        return seconds, seconds

    def peak(self, call: Callable[[int], object]) -> None:
        """Not known: PyTorch does not count a CPU's memory."""


class GPUClock:
    """CUDA events on the current stream."""

    device = "cuda"
    memory = 16 * 2**30

    def __init__(self):
        self.cache = torch.cuda.get_device_properties().L2_cache_size
        self._other = torch.ones(self.cache, dtype=torch.int32, device="cuda")  # four times the cache
        self._backlog: WeakKeyDictionary[Callable, float] = WeakKeyDictionary()

    def wait(self) -> None:
        torch.cuda.synchronize()

    def block(self, call: Callable[[int], object], calls: int) -> tuple[float, float]:
        """Seconds per call of ``call(0)``, …, ``call(calls - 1)``, and of the host to queue one."""
        backlog = self._backlog.get(call, 1e-3)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._other.amax()
        torch.cuda._sleep(int(backlog * 2e9))  # cycles, at about 2 GHz
        start.record()
        began = time.perf_counter()
        for i in range(calls):
            call(i)
        queued = time.perf_counter() - began
        late = start.query()  # the GPU began before everything was queued
        end.record()
        end.synchronize()
        if late:
            self._backlog[call] = min(max(2 * backlog, 1.5 * queued), 0.01)
        return 1e-3 * start.elapsed_time(end) / calls, queued / calls

    def peak(self, call: Callable[[int], object]) -> int:
        """Bytes allocated at the worst moment of a call, its outputs included, beyond what was there before."""
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call(0)
        self.wait()
        return torch.cuda.max_memory_allocated() - before


def clock(device: str) -> HostClock | GPUClock:
    return GPUClock() if device == "cuda" else HostClock()


def copies(clock: HostClock | GPUClock, input_bytes: int) -> int:
    """How many copies of the inputs there are, and so how many calls a block may have."""
    wanted = 32 if input_bytes < clock.cache / 8 else 4 if input_bytes < 4 * clock.cache else 1
    return max(1, min(wanted, clock.memory // max(input_bytes, 1)))


def first(clock: HostClock | GPUClock, call: Callable[[int], object]) -> tuple[float, object]:
    """Seconds of one call from start to finish, compilation included, and what it returned."""
    clock.wait()
    start = time.perf_counter()
    found = call(0)
    clock.wait()
    return time.perf_counter() - start, found


def interleaved(
    clock: HostClock | GPUClock,
    calls: dict[str, Callable[[int], object]],
    copies: int,
    rounds: int,
    budget: float,
    after: dict[str, Callable[[], object]] | None = None,
) -> dict[str, Timing]:
    """Times every variant in turns, in another order each round.

    Args:
        clock: of the device.
        calls: variant to a function of the number of a copy of the inputs, each called at least once before.
        copies: of the inputs.
        rounds: samples of each variant; fewer (at least 5) where they would not fit the budget.
        budget: seconds for all of it.
        after: variant to what is done after each of its blocks, which is not timed.
    """
    if not calls:
        return {}
    kept: list = [None] * copies  # outputs stay alive for a while, so that they too are written to cold memory

    def turning(call):
        def turn(i: int) -> None:
            kept[i] = call(i)

        return turn

    turns = {name: turning(call) for name, call in calls.items()}

    def block(name: str, calls: int) -> tuple[float, float]:
        found = clock.block(turns[name], calls)
        if after and name in after:
            after[name]()
        return found

    size, cost = {}, 0.0
    for name in turns:
        seconds = min(block(name, 1)[0] for _ in range(2))
        size[name] = max(1, min(copies, round(BLOCK_SECONDS / seconds)))
        cost += size[name] * seconds
    rounds = max(5, min(rounds, int(budget / cost)))
    names, found = list(turns), {name: Timing() for name in turns}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds, launch = block(name, size[name])
            if number:  # the first round warms up
                found[name].device.append(seconds)
                found[name].launch.append(launch)
    return found


def _rate(clock: HostClock | GPUClock, call: Callable[[int], object], amount: float) -> float:
    clock.block(call, 2)
    return amount / quantile((clock.block(call, 1)[0] for _ in range(9)), 0.5)


def copy_rate(clock: HostClock | GPUClock) -> float:
    """Bytes read and written per second by a copy much larger than the cache: what memory can reach here."""
    dtype = torch.bfloat16 if clock.device == "cuda" else torch.float32
    source = torch.randn(2**29 if clock.device == "cuda" else 2**25, dtype=dtype, device=clock.device)
    target = torch.empty_like(source)
    return _rate(clock, lambda i: target.copy_(source), 2 * source.nbytes)


def matmul_rate(clock: HostClock | GPUClock) -> float:
    """Operations per second of a large square matrix product on random values: bf16 on a GPU, float32 on a CPU."""
    n, dtype = (8192, torch.bfloat16) if clock.device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(n, n, dtype=dtype, device=clock.device) for _ in range(2))
    return _rate(clock, lambda i: a @ b, 2.0 * n**3)
