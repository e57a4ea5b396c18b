"""Training and answering in FP8 against float32: losses, held-out scores and greedy tokens of three seeds of the demo.

    python -m bench.fp8_training DEMO --out bench/results/cpu/fp8_training.jsonl [--seeds 0 1 2] [--steps 100]

DEMO is a run of ``afn demo``, of which its base, corpus and trained model are taken. Each seed trains the demo's two
SFT stages three times from that base, on one thread: in float32, in bfloat16, and in float32 with the language model's
linear layers in FP8. The rounding of FP8 is exact and sums are float32; what Hopper's matrix units lose in the sum of a
block is not emulated.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from afn_model import AFNext, AFNextProcessor
from afn_model.bootstrap.tiny_curriculum import read
from afn_model.data.plan import question
from afn_model.data.records import parse_sample
from afn_model.demo import curriculum
from afn_model.eval.heldout import answer
from afn_model.files import write_rows, write_text
from afn_model.host import machine
from afn_model.scoring.metrics import by_axis
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from afn_model.train.validate import MODEL
from afn_model.world.record import BASICS
from bench.measure import results

OUT = results("cpu") / "fp8_training.jsonl"
ARMS: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {"dtype": "bfloat16"}, "FP8": {"fp8": True}}
OTHERS = tuple(ARMS)[1:]
ADAPTOR_STEPS, LAST = 20, 25  # of the first stage; and of the second, those whose losses are averaged
LARGER = 6  # random weights by this: answers then follow the input, and are not one token over and over
VARIANTS: dict[str, tuple[torch.dtype, str | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "FP8, the rest in float32": (torch.float32, "fp8"),
    "FP8, the rest in bfloat16": (torch.bfloat16, "fp8"),
}


def trained(demo: Path, seed: int, steps: int, arm: str, records: list[dict]) -> dict[str, Any]:
    """A run's losses by stage and step, and what the model it leaves scores in float32."""
    plan = curriculum(demo, seed, math.inf, steps)
    plan = replace(plan, stages=(replace(plan.stages[0], steps=ADAPTOR_STEPS), *plan.stages[1:]))
    losses: dict[str, list[float]] = {stage.name: [] for stage in plan.stages}
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="afn-fp8-") as home:
        train(
            plan,
            demo / "base",
            Path(home),
            layout=RunLayout(workers=0, log_every=1, **ARMS[arm]),
            options=Options(
                show=False, tensorboard=False, on_row=lambda row: losses[row["stage"]].append(round(row["loss"], 5))
            ),
        )
        folder = Path(home) / plan.stages[-1].name / MODEL
        model = AFNext.from_pretrained(folder, dtype=torch.float32)
        processor = AFNextProcessor.from_pretrained(folder)
    answers = answer(model, processor, records, demo / "corpus" / "heldout", max_new_tokens=12)
    scores = {axis: round(row["score"], 4) for axis, row in by_axis(records, answers).items()}
    return {"losses": losses, "scores": scores, "n": len(records), "cpu_seconds": round(time.process_time() - started)}


def tokens(folder: Path, records: Sequence[dict], heldout: Path, variant: str) -> list[list[int]]:
    """Greedy answers of a model folder in one of the variants."""
    dtype, weights = VARIANTS[variant]
    model = AFNext.from_pretrained(folder, dtype=dtype, weights=weights).eval()
    processor, found = AFNextProcessor.from_pretrained(folder), []
    conversations = [question(parse_sample(record, heldout).turns) for record in records]
    for start in range(0, len(conversations), 30):
        batch = processor.pack([processor.prepare(turns) for turns in conversations[start : start + 30]])
        found += model.generate(batch, max_new_tokens=12)
    return found


def agreement(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> dict[str, float]:
    """Share of the answers that are the same, and of the tokens before the first that differs."""
    same = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    common = 0
    for a, b in zip(one, other, strict=True):
        common += next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    longest = sum(max(len(a), len(b)) for a, b in zip(one, other, strict=True))
    return {"same_answers": round(same, 4), "same_tokens": round(common / max(longest, 1), 4)}


def greedy(demo: Path, records: Sequence[dict]) -> list[dict[str, Any]]:
    """How far the variants agree with float32 and with bfloat16, with the demo's weights and with random ones."""
    heldout, rows = demo / "corpus" / "heldout", []
    with tempfile.TemporaryDirectory(prefix="afn-fp8-") as home:
        torch.manual_seed(0)
        model = AFNext(AFNext.from_pretrained(demo).config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and "embed_positions" not in name:
                    parameter.mul_(LARGER)
        model.save_pretrained(home)
        AFNextProcessor.from_pretrained(demo).save_pretrained(home)
        for name, folder in (("the demo's", demo), ("random", Path(home))):
            found = {variant: tokens(folder, records, heldout, variant) for variant in VARIANTS}
            for variant in list(VARIANTS)[1:]:
                for to in ("float32", "bfloat16"):
                    if variant != to:
                        row = {"weights": name, "variant": variant, "beside": to, "n": len(records)}
                        rows.append(row | agreement(found[variant], found[to]))
    return rows


def late(run: dict[str, Any]) -> float:
    """Mean loss of the last steps."""
    return fmean(list(run["losses"].values())[-1][-LAST:])


def curves(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every stage and tenth of its steps: mean loss of each arm, spread of float32's seeds, largest paired gaps."""
    runs = {(row["arm"], row["seed"]): row for row in rows if "arm" in row}
    seeds, found = sorted({seed for _, seed in runs}), []
    for stage, losses in next(iter(runs.values()))["losses"].items():
        size = max(len(losses) // 10, 1)
        for start in range(0, len(losses) - size + 1, size):
            means = {key: fmean(row["losses"][stage][start : start + size]) for key, row in runs.items()}
            of = {arm: [means[arm, seed] for seed in seeds] for arm in ARMS}
            found.append(
                {
                    "stage": stage,
                    "steps": f"{start} to {start + size - 1}",
                    **{arm: fmean(of[arm]) for arm in ARMS},
                    "spread": max(of["float32"]) - min(of["float32"]),
                    "gaps": {
                        arm: max((b - a for a, b in zip(of["float32"], of[arm], strict=True)), key=abs)
                        for arm in OTHERS
                    },
                }
            )
    return found


def document(rows: Sequence[dict[str, Any]]) -> str:
    """What the rows say, in Markdown."""
    runs, agreed = ([row for row in rows if key in row] for key in ("arm", "weights"))
    seeds = sorted({row["seed"] for row in runs})
    found = curves(rows)
    inside = {arm: sum(abs(one["gaps"][arm]) <= one["spread"] for one in found) for arm in OTHERS}
    lines = [
        "# FP8 against float32 in training and in answers",
        "",
        f"`python -m bench.fp8_training DEMO`: the demo's two SFT stages from one base, {len(seeds)} seeds, each in "
        "float32, in bfloat16, and in float32 with the language model's linear layers in FP8 (emulated: exact e4m3, "
        f"blocks of 128, float32 sums). {sum(row['cpu_seconds'] for row in runs):,} s of CPU time on "
        f"{rows[0]['machine']}. Seeds are orders of the data.",
        "",
        "## Losses",
        "",
        "Spread is the largest minus the smallest of float32's seeds, a gap the largest difference from float32 with "
        f"the same seed. Of {len(found)} intervals the gap is within the spread in "
        f"{' and '.join(f'{count} ({arm})' for arm, count in inside.items())}.",
        "",
        f"| stage | steps | {' | '.join(ARMS)} | spread | {' | '.join(f'gap of {arm}' for arm in OTHERS)} |",
        f"|---|---|{'---|' * (2 * len(ARMS))}",
    ]
    for one in found:
        numbers = [f"{one[name]:.4f}" for name in (*ARMS, "spread")]
        numbers += [f"{gap:+.4f}" for gap in one["gaps"].values()]
        lines.append(f"| {one['stage']} | {one['steps']} | {' | '.join(numbers)} |")
    axes = list(runs[0]["scores"])
    lines += ["", "## Held-out scores", "", f"Of {runs[0]['n']} records, asked in float32; mean, then each seed.", ""]
    lines += [
        f"| trained in | {' | '.join(axes)} | loss of the last {LAST} steps |",
        f"|---|{'---|' * (len(axes) + 1)}",
    ]
    for arm in ARMS:
        of = [row for row in runs if row["arm"] == arm]
        cells = [[row["scores"][axis] for row in of] for axis in axes]
        shown = [f"{fmean(one):.1%} ({', '.join(f'{x:.1%}' for x in one)})" for one in cells]
        last = [late(row) for row in of]
        lines.append(f"| {arm} | {' | '.join(shown)} | {fmean(last):.3f} ({', '.join(f'{x:.3f}' for x in last)}) |")
    lines += [
        "",
        "## Greedy answers",
        "",
        f"Of {agreed[0]['n']} records: answers that are the same, and tokens before the first that differs. Random "
        f"weights are {LARGER} times a new model's, and the scores of many tokens nearly equal: rounding to bfloat16 "
        "alone changes most answers, so they say how much is rounded and not what a trained model loses.",
        "",
        "| weights | linear layers | beside | same answers | same tokens |",
        "|---|---|---|---|---|",
    ]
    for row in agreed:
        shares = f"{row['same_answers']:.1%} | {row['same_tokens']:.1%}"
        lines.append(f"| {row['weights']} | {row['variant']} | {row['beside']} | {shares} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of afn demo")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="of the second stage")
    parser.add_argument("--records", type=int, default=120, help="held-out ones of each kind")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    heldout = args.demo / "corpus" / "heldout"
    records, few = (read(heldout, list(BASICS), most) for most in (args.records, args.records // 3))
    rows = [{"benchmark": "fp8_training", **row, **machine("cpu")} for row in greedy(args.demo, few)]
    print(json.dumps([{key: row[key] for key in list(row)[1:7]} for row in rows]), flush=True)
    for seed in args.seeds:
        for arm in ARMS:
            row = {"benchmark": "fp8_training", "arm": arm, "seed": seed, "steps": args.steps}
            rows.append(row | trained(args.demo, seed, args.steps, arm, records) | machine("cpu"))
            print(arm, seed, f"{late(rows[-1]):.4f}", rows[-1]["scores"], rows[-1]["cpu_seconds"], flush=True)
            write_rows(args.out, rows)
    write_text(args.out.with_suffix(".md"), document(rows))


if __name__ == "__main__":
    main()
