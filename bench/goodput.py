"""What the engine's scheduler would do on one H100, by the model's arithmetic: simulated, nothing is measured.

    python -m bench.goodput [--out bench/results/simulated/goodput.jsonl] [--seconds 1200]

The scheduler is the engine's own; time is that of ``Costs.of``, whose rates are assumptions. A user asks several
questions about a recording one after another, thinking in between, and then goes on with another recording. Pages that
have no room go to the host's memory, which is taken to be large enough. A request is good if its first token comes
within a limit for its recording, and the others at 20 a second at least.
"""

from __future__ import annotations

import argparse
import heapq
import random
from dataclasses import dataclass, field
from pathlib import Path

from afn_model.config import ModelConfig
from afn_model.files import write_rows, write_text
from afn_model.infer.costs import Costs
from afn_model.infer.pages import PAGE, PagePool
from afn_model.infer.schedule import Scheduler
from afn_model.infer.sequence import EngineStep, Sequence
from afn_model.infer.tokens import PromptTokens, WindowSpan

OUT = Path("bench/results/simulated/goodput.jsonl")
USERS, MINUTES = (1, 8, 64), (0.5, 5, 30)
QUESTIONS, THINKS, ANSWER, TOKENS = 4, 10.0, 128, 750  # per recording; mean seconds; mean tokens; of a window
FIRST, EACH = {0.5: 0.5, 5: 1.0, 30: 5.0}, 0.05  # seconds until the first token, by minutes; of each after it
MEMORY = 56e9  # bytes for keys and values of an H100 beside the weights


@dataclass
class Asked:
    """A question and what became of it; times in simulated seconds."""

    sequence: Sequence
    at: float
    cold: bool
    first: float = 0.0
    last: float = 0.0
    gap: float = 0.0


@dataclass
class SimulatedEngine:
    """Steps of the scheduler, each as long as it is predicted to take."""

    costs: Costs
    pages: int
    slots: int = 256
    now: float = 0.0
    busy: float = 0.0
    windows: int = 0
    longest: float = 0.0
    asked: dict[Sequence, Asked] = field(default_factory=dict)
    features: set[bytes] = field(default_factory=set)
    saved: dict[bytes, bytes] = field(default_factory=dict)

    def __post_init__(self):
        self.scheduler = Scheduler(
            PagePool(self.pages, self._save),
            slots=self.slots,
            costs=self.costs,
            chunk=8192,
            encoded=self.features.__contains__,
            restore=self._saved,
            saved=self.saved.__contains__,
            clock=lambda: self.now,
        )

    def _save(self, page: int, key: bytes, content: bytes) -> None:
        self.saved[key] = content

    def _saved(self, pages: list[tuple[bytes, bytes]]) -> list[None]:
        count = next((n for n, (key, content) in enumerate(pages) if self.saved.get(key) != content), len(pages))
        return [None] * count

    def add(self, prompt: PromptTokens, limit: int, cold: bool) -> Sequence:
        sequence = Sequence(prompt, limit)
        self.scheduler.add(sequence)
        self.asked[sequence] = Asked(sequence, self.now, cold)
        return sequence

    def seconds(self, step: EngineStep) -> float:
        costs = self.costs
        found = costs.step + costs.window * len(step.windows) + costs.row * len(step.rows)
        found += costs.key * sum(step.places) + costs.page * len(step.restored)
        return found + sum(costs.chunk(chunk.start, chunk.stop) for chunk in step.chunks)

    def step(self) -> list[Asked]:
        """Makes a step; returns what has ended."""
        step, ended = self.scheduler.plan(), []
        if not step:
            return ended
        self.features |= set(step.windows)
        self.windows += len(step.windows)
        self.scheduler.launched(step)
        seconds = self.seconds(step)
        self.now += seconds
        self.busy += seconds
        self.longest = max(self.longest, seconds)
        for sequence in [one for one, draws in zip(step.rows, step.draws, strict=True) if draws]:
            self.scheduler.drawn(sequence, 5)
            asked = self.asked[sequence]
            asked.gap = max(asked.gap, self.now - asked.last) if asked.first else 0.0
            asked.first, asked.last = asked.first or self.now, self.now
            if len(sequence.tokens) == sequence.limit:
                self.scheduler.finish(sequence)
                ended.append(self.asked.pop(sequence))
        return ended


def question(recording: int, minutes: float, asked: int) -> PromptTokens:
    """About a recording: 40 tokens before it, 30 behind it."""
    windows = round(2 * minutes)
    spans = [
        WindowSpan(40 + TOKENS * n, 40 + TOKENS * (n + 1), f"{recording} {n}".encode().ljust(32), n)
        for n in range(windows)
    ]
    return PromptTokens([1] * 40 + [2] * TOKENS * windows + [asked] * 30, tuple(spans))


def simulate(users: int, minutes: float, seconds: float, budget: float = 0.04, seed: int = 0) -> dict:
    """A closed loop of users for so many simulated seconds, the first tenth of which does not count."""
    rng = random.Random(seed)
    costs = Costs.of(ModelConfig(), budget=budget)
    engine = SimulatedEngine(costs, int(MEMORY / costs_per_page()))
    comes = [(rng.expovariate(1 / THINKS), user) for user in range(users)]
    heapq.heapify(comes)
    state = {user: (user * 10**6, 0) for user in range(users)}  # recording, questions asked about it
    owners: dict[Sequence, int] = {}
    done: list[Asked] = []
    while engine.now < seconds:
        if not engine.scheduler.running():
            engine.now = max(engine.now, comes[0][0])
        while comes and comes[0][0] <= engine.now:
            _, user = heapq.heappop(comes)
            recording, asked = state[user]
            limit = max(1, min(1024, round(rng.expovariate(1 / ANSWER))))
            owners[engine.add(question(recording, minutes, 3 + asked), limit, not asked)] = user
            state[user] = (recording, asked + 1) if asked + 1 < QUESTIONS else (recording + 1, 0)
        for one in engine.step():
            done.append(one)
            heapq.heappush(comes, (engine.now + rng.expovariate(1 / THINKS), owners.pop(one.sequence)))
    counted = [one for one in done if one.at > seconds / 10]
    good = [one for one in counted if is_good(one, FIRST[minutes])]
    first = {kind: sorted(o.first - o.at for o in counted if o.cold == (kind == "cold")) for kind in ("cold", "warm")}
    more = [one for one in counted if one.sequence.limit > 1]
    each = sorted((one.last - one.first) / (one.sequence.limit - 1) for one in more)
    return {
        "users": users,
        "minutes": minutes,
        "simulated_s": seconds,
        "limits_s": [FIRST[minutes], EACH],
        "requests": len(counted),
        "goodput_per_s": round(len(good) / (0.9 * seconds), 3),
        "good": round(len(good) / max(1, len(counted)), 3),
        "first_cold_s": [round(at(first["cold"], share), 3) for share in (0.5, 0.99)],
        "first_warm_s": [round(at(first["warm"], share), 3) for share in (0.5, 0.99)],
        "each_ms": [round(1e3 * at(each, share), 1) for share in (0.5, 0.99)],
        "longest_gap_ms": round(1e3 * max((one.gap for one in counted), default=0.0), 1),
        "busy": round(engine.busy / engine.now, 3),
        "preempted": engine.scheduler.preempted,
    }


def costs_per_page() -> float:
    """Bytes of a page's keys and values in 16 bits."""
    text = ModelConfig().text
    return PAGE * text.layers * 2 * text.kv_heads * text.head_dim * 2


def is_good(one: Asked, first: float) -> bool:
    more = one.sequence.limit - 1
    return one.first - one.at <= first and one.last - one.first <= EACH * more


def at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def table(rows: list[dict]) -> str:
    lines = [
        "Simulated, not measured: the engine's scheduler with predicted times of one H100 (`python -m bench.goodput`).",
        f"A request is good if its first token comes within the limit, and the others within {1e3 * EACH:.0f} ms each.",
        "Two numbers are median and 99th percentile.",
        "",
        "| minutes | users | limit, s | good requests/s | good | first token, new recording, s | known, s | "
        "each token, ms | longest gap, ms | busy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        two = {name: " / ".join(f"{x:g}" for x in row[name]) for name in ("first_cold_s", "first_warm_s", "each_ms")}
        lines.append(
            f"| {row['minutes']:g} | {row['users']} | {row['limits_s'][0]:g} | {row['goodput_per_s']:g} | "
            f"{row['good']:.0%} | {two['first_cold_s']} | {two['first_warm_s']} | {two['each_ms']} | "
            f"{row['longest_gap_ms']:g} | {row['busy']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seconds", type=float, default=1200.0, help="simulated, of each case")
    args = parser.parse_args()
    rates = "assumed: 600e12 FLOP/s in products, 400e12 in attention, 2.7e12 B/s of memory, 50e9 B/s from the host"
    rows = []
    for minutes in MINUTES:
        for users in USERS:
            rows.append(simulate(users, minutes, args.seconds) | {"simulated": True, "rates": rates})
            print(rows[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_rows(args.out, rows)
    write_text(args.out.with_suffix(".md"), table(rows))


if __name__ == "__main__":
    main()
