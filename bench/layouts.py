"""The layouts that are shipped beside the best that the planner finds, for 1 to 128 GPUs of 80 GB: nothing is measured.

    python -m bench.layouts [--gpus 1 8 16 128] [--out bench/results/simulated/layouts.jsonl]

Memory and time are those of ``afn train --plan``: what is counted from shapes, and estimated from assumed rates.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afn_model.config import ModelConfig
from afn_model.files import write_rows, write_text
from afn_model.train.account import Account
from afn_model.train.curriculum import Stage, read_curriculum
from afn_model.train.planner import check_layout, search, step_time
from afn_model.train.rates import ASSUMED, described
from afn_model.train.run_layout import RunLayout, for_stage, read_layout
from afn_model.train.typical import longest

OUT = Path("bench/results/simulated/layouts.jsonl")
MEMORY, CLOSE = 80.0, 0.90  # GB of a GPU; share of the best rate that a shipped layout should have
SHIPPED = {1: "gpu", 8: "8gpu", 16: "8gpu", 128: "128gpu"}
FIELDS = ("recompute", "ulysses", "ring", "shard", "frozen")
LORA = {"rank": 16, "alpha": 32}
# Why a shipped layout is not within 10 % of the best.
SHORT = (
    "the layout must hold 24K tokens too. A stage of 8K may have `layout: {recompute: none}`, which is the best here."
)
SHARED = (
    "sharing a sequence by heads among four, without recomputation, is a tenth faster by links and rates that are "
    "assumed, and leaves 4 GB of the GPU: not before these rates have been measured."
)
REASONS = {
    **{(name, gpus): SHORT for name in ("finetune 8K", "LoRA 8K") for gpus in SHIPPED},
    **{(name, gpus): SHARED for name in ("mid-1", "cot-sft") for gpus in (8, 16)},
}


def stages() -> list[Stage]:
    """The stages of the curriculum, and a full and a LoRA fine-tune at 8K."""
    curriculum = read_curriculum("afnext")
    short = {"context": 8192, "max_audio": 60.0, "batch_tokens": 1_048_576}
    mid = curriculum["mid-1"]
    return [
        *curriculum.stages,
        replace(mid, name="finetune 8K", trains=("adaptor", "language_model"), **short),
        replace(mid, name="LoRA 8K", trains=("language_model",), lora=LORA, **short),
    ]


def described_layout(layout: RunLayout, gpus: int) -> dict[str, Any]:
    return {name: getattr(layout, name) for name in FIELDS} | {"shard": layout.shard or gpus}


def measured(config: ModelConfig, stage: Stage, layout: RunLayout, gpus: int) -> dict[str, Any]:
    """GB and tokens/s of a layout."""
    time = step_time(config, stage, layout, gpus, MEMORY, ASSUMED)
    needs = Account(config, stage, layout, gpus, longest(stage), MEMORY * 1e9).needs() / 1e9
    rate = time.tokens() / gpus / time.step().total
    return {**described_layout(layout, gpus), "gb": round(needs, 1), "tokens_s_gpu": round(rate)}


def row(config: ModelConfig, stage: Stage, gpus: int) -> dict[str, Any]:
    """A stage on a number of GPUs: its shipped layout, the best, and how near they are."""
    name = SHIPPED[gpus]
    layout = for_stage(read_layout(name), stage)
    found: dict[str, Any] = {"stage": stage.name, "gpus": gpus, "layout": name}
    try:
        check_layout(config, stage, layout, gpus)
    except ValueError as error:
        return {**found, "refused": str(error)}
    best = search(config, stage, layout, gpus, memory=MEMORY)
    found["shipped"] = measured(config, stage, layout, gpus)
    found["fits"] = found["shipped"]["gb"] <= MEMORY
    if best:
        found["best"] = measured(config, stage, best[0][1], gpus)
        found["share"] = round(found["shipped"]["tokens_s_gpu"] / found["best"]["tokens_s_gpu"], 3)
    return found


def rows(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    config = ModelConfig()
    for gpus in sizes:
        for stage in stages():
            yield row(config, stage, gpus)


DOCUMENT = """# Shipped layouts, and the best by the planner's model

**Nothing here was measured.** `python -m bench.layouts` asks the model of `afn train --plan`: GB of the fullest GPU
counted from shapes ({reserve:g} GB of reserve included), tokens/s per GPU estimated from assumed rates on a mix of
clips as long as the stage allows. On 16 GPUs the shipped layout is `8gpu`, with a copy of the weights in each node.
*Share* is the shipped layout's rate over the best one's; differences below 3 % mean nothing.

| GPUs | stage | layout | shipped | GB | tokens/s | best | GB | tokens/s | share |
|---|---|---|---|---|---|---|---|---|---|
{table}
{reasons}
## Rates

{rates}
"""


def words(layout: dict[str, Any]) -> str:
    parts = [f"recompute {layout['recompute']}", f"U{layout['ulysses']} x R{layout['ring']}"]
    return ", ".join([*parts, f"shard {layout['shard']}", f"frozen {layout['frozen']}"])


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The table as a document."""
    table, reasons = [], []
    for x in found:
        head = f"| {x['gpus']} | {x['stage']} | {x['layout']} |"
        if "refused" in x:
            table.append(f"{head} refused: {x['refused'].partition(': ')[2]} | | | | | | |")
            reasons.append(x)
            continue
        ours, best = x["shipped"], x.get("best")
        fits = "" if x["fits"] else " (does not fit)"
        text = f"{head} {words(ours)}{fits} | {ours['gb']:.1f} | {ours['tokens_s_gpu']:,} |"
        if best is None:
            table.append(f"{text} nothing fits | | | |")
            continue
        share = f"{x['share']:.0%}" if x["fits"] else "-"
        table.append(f"{text} {words(best)} | {best['gb']:.1f} | {best['tokens_s_gpu']:,} | {share} |")
        if x["fits"] and x["share"] < CLOSE:
            reasons.append(x)
    why = "".join(f"- {x['stage']} on {x['gpus']}: {REASONS.get((x['stage'], x['gpus']), '?')}\n" for x in reasons)
    why = f"\n## Why a shipped layout is not within 10 % of the best\n\n{why}" if why else ""
    rates = "\n".join(f"- {part}" for line in described(ASSUMED) for part in line.partition(": ")[2].split(", "))
    return DOCUMENT.format(table="\n".join(table), reasons=why, rates=rates, reserve=8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.layouts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", choices=list(SHIPPED), default=list(SHIPPED))
    parser.add_argument("--out", type=Path, help="write PREFIX.jsonl and PREFIX.md")
    args = parser.parse_args(arguments)
    found = list(rows(args.gpus))
    print(markdown(found))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_rows(args.out.with_suffix(".jsonl"), found)
        write_text(args.out.with_suffix(".md"), markdown(found))


if __name__ == "__main__":
    main()
