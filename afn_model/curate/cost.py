"""What a plan costs: calls, tokens, core-hours and GPU-hours of every stage, from what stages need for an hour of audio
or from what a run has spent."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from afn_model.curate.plan import Plan
from afn_model.curate.rows import outcomes, shard_names
from afn_model.curate.run import spent_path
from afn_model.curate.spending import Spending

# Tokens a second that a GPU reads and writes of a language model of 7B in batches: assumptions, not measurements.
TOKENS_IN, TOKENS_OUT = 20_000, 2_500


@dataclass
class StageCost:
    """What a stage costs.

    Args:
        stage: its name.
        hours: of audio that reach it.
        calls, tokens_in, tokens_out: of annotators.
        core_hours, gpu_hours: of its own work.
        served_hours: of GPUs, if the annotator's tokens are read and written by one's own.
        measured: from a run; its tokens are all counted as read. Else from what the stage says of itself.
    """

    stage: str
    hours: float = 0.0
    calls: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    served_hours: float = 0.0
    measured: bool = False


@dataclass(frozen=True)
class StageSample:
    """What a run has seen of a stage.

    Args:
        rows, kept: that reached it, and that it kept.
        spent: {"rows", "calls", "tokens", "seconds"} of the rows that were run.
    """

    rows: int
    kept: int
    spent: dict[str, float]


def samples(plan: Plan, out: Path) -> tuple[dict[str, StageSample], float | None]:
    """What a folder has of every stage of a plan, and the mean seconds of its recordings; None where none is known."""
    found, seconds, known = dict[str, StageSample](), 0.0, 0
    for stage in plan.stages:
        stores = [outcomes(plan, out, stage.name, shard) for shard in shard_names(plan.shards)]
        told = [claims for store in stores if (claims := store.claims()) is not None]
        if not told:
            continue
        spent = Spending(spent_path(plan, out, stage.name)).look().total
        found[stage.name] = StageSample(sum(one["rows"] for one in told), sum(one["kept"] for one in told), spent)
        if "seconds" in stage.writes:
            for line in (line for store in stores if store.claims() for line in store.lines() if "fields" in line):
                seconds, known = seconds + line["fields"].get("seconds", 0.0), known + 1
    return found, seconds / known if known else None


def estimate(plan: Plan, hours: float | None = None, out: Path | None = None) -> list[StageCost]:
    """The cost of every stage.

    Args:
        plan: what is to be run.
        hours: of audio that are found; None for all that a run in ``out`` has found.
        out: folder of a run of the plan, perhaps of a few recordings: its shares of rows that go on, and what it has
            spent for an hour of audio, stand for the whole.

    Raises:
        ValueError: neither says how many hours there are.
    """
    seen, mean = samples(plan, out) if out is not None else ({}, None)
    first = seen.get(plan.stages[0].name)
    if hours is None:
        if first is None or not mean:
            raise ValueError("how much audio there is nobody has measured yet: give --hours")
        hours = first.rows * mean / 3600
    found = []
    for stage in plan.stages:
        needs, sample, cost = stage.resources, seen.get(stage.name), StageCost(stage.name, hours)
        heard = sample.spent["rows"] * mean / 3600 if sample and mean else 0.0
        if sample and heard:
            cost.measured = True
            seconds = sample.spent["seconds"] / heard
            cost.calls, cost.tokens_in = hours * sample.spent["calls"] / heard, hours * sample.spent["tokens"] / heard
        else:
            seconds = needs.seconds
            cost.calls, cost.tokens_in = hours * needs.calls, hours * needs.tokens_in
            cost.tokens_out = hours * needs.tokens_out
        # What waits for an annotator needs no core.
        cost.core_hours = hours * seconds / 3600 * needs.cpu if not (cost.measured and cost.calls) else 0.0
        cost.gpu_hours = hours * seconds / 3600 * needs.gpu
        cost.served_hours = (cost.tokens_in / TOKENS_IN + cost.tokens_out / TOKENS_OUT) / 3600
        found.append(cost)
        if sample and sample.rows:
            hours *= sample.kept / sample.rows
    return found


def text(costs: list[StageCost]) -> str:
    """A table, with a total."""
    total = StageCost("together")
    for one in fields(StageCost)[2:-1]:
        setattr(total, one.name, sum(getattr(cost, one.name) for cost in costs))
    head = ("stage", "hours", "calls", "tokens in", "tokens out", "core-hours", "GPU-hours", "served", "from")
    table = [head, *(_row(cost, cost.measured) for cost in costs), _row(total, None)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    note = f"served: GPU-hours of one's own annotators at {TOKENS_IN:,} tokens read and {TOKENS_OUT:,} written a second"
    return "\n".join([*lines, f"{note} and GPU, an assumption"])


def _row(cost: StageCost, measured: bool | None) -> tuple[str, ...]:
    numbers = (cost.hours, cost.calls, cost.tokens_in, cost.tokens_out, cost.core_hours, cost.gpu_hours)
    source = "" if measured is None else "a run" if measured else "the stage"
    cells = [_short(value) for value in (*numbers, cost.served_hours)]
    return (cost.stage, *(cells if measured is not None else ["", *cells[1:]]), source)


def _short(value: float) -> str:
    """Three digits: 18.0M, 7.92B, 111."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == "K" else size)
            return f"{scaled:.3g}{unit}" if scaled < 1000 else f"{scaled:,.0f}{unit}"
    return f"{value:,.0f}" if value >= 100 or not value else f"{value:.3g}"
