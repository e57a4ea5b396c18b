"""Blends that follow held-out losses against a fixed one, in a world with a hard dataset and a noisy one.

    python -m bench.reblend --out bench/results/cpu/reblend.jsonl [--seeds 3] [--steps 160]

Four datasets of text, 500 records each, a quarter of the samples of each: two tables of 4 questions (easy), a table of
16 (hard), and answers drawn at random of eight (noisy: no less than ln 8 nats can be reached for the letter, 1.04 per
supervised token where letter and end of turn count). Held-out records ask the same tables. Tables, records, model and
order are drawn by the seed; all rules have the same number of steps. The references of ``doremi`` are the last losses
of the seed's run with the fixed blend: it takes two runs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch

from afn_model import AFNext, AFNextProcessor
from afn_model.config import AudioConfig, TextConfig, preset
from afn_model.data import index
from afn_model.files import write_rows, write_text
from afn_model.prompt.tokenizer import make_tokenizer
from afn_model.train.curriculum import made_curriculum
from afn_model.train.log import read_rows
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train

OUT = Path(__file__).with_name("results") / "cpu" / "reblend.jsonl"
RULES = ("fixed", "loss", "doremi", "bandit")
KEYS, ANSWERS = "abcdefghijklmnop", "qrstuvwx"
LEARNABLE = ("easy-1", "easy-2", "hard")
RECORDS, HELD, SEEDS, STEPS, EVERY = 500, 32, 3, 160, 20
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def world(folder: Path, seed: int) -> None:
    """Datasets with held-out sets, and a small model with random weights."""
    rng = random.Random(seed)
    sizes = {"easy-1": 4, "easy-2": 4, "hard": len(KEYS)}
    tables = {name: {key: rng.choice(ANSWERS) for key in KEYS[:size]} for name, size in sizes.items()}
    words = {"easy-1": "one", "easy-2": "two", "hard": "sum", "noisy": "coin"}
    for name, word in words.items():
        table = tables.get(name, tables["hard"])
        for file, count in ((name, RECORDS), (f"{name}-held", HELD)):
            lines = []
            for number in range(count):
                asked = rng.choice(list(table)) if file == name else list(table)[number % len(table)]
                said = rng.choice(ANSWERS) if name == "noisy" else table[asked]
                talk = [{"from": "human", "value": f"{word} {asked}"}, {"from": "gpt", "value": said}]
                lines.append(json.dumps({"id": str(number), "conversations": talk}) + "\n")
            (folder / f"{file}.jsonl").write_text("".join(lines))
            index.build(folder / f"{file}.jsonl")
    tokenizer = make_tokenizer(["one two sum coin user assistant", *KEYS, *ANSWERS] * 4, 300)
    processor = AFNextProcessor(tokenizer, chat_template=TEMPLATE)
    torch.manual_seed(seed)
    config = replace(
        preset("tiny"),
        audio=AudioConfig(width=32, layers=1, heads=2, ffn=32),
        text=TextConfig(tokenizer.get_vocab_size(), 64, 2, 2, kv_heads=1, ffn=128, max_positions=512),
        audio_token_id=processor.token_id("<sound>"),
    )
    AFNext(config).save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")


def run(folder: Path, rule: str, seed: int, steps: int, reference: dict[str, float] | None = None) -> dict:
    """Losses and shares of a run's last measurement, and what they were on the way."""
    names = (*LEARNABLE, "noisy")
    reblend = {"rule": rule, "every": EVERY, "held": {name: f"{name}-held.jsonl" for name in names}, "samples": HELD}
    reblend |= {"reference": reference} if reference else {}
    stage = {"trains": "language_model", "context": 256, "batch_tokens": 256, "lr": 5e-3, "epochs": math.inf}
    stage |= {"steps": steps, "chunk": 512, "blend": dict.fromkeys(names, 1), "reblend": reblend}
    datasets = {name: f"{name}.jsonl" for name in names}
    given = made_curriculum({"seed": seed, "datasets": datasets, "stages": {"all": stage}}, "reblend", folder)
    out = folder / rule
    layout = RunLayout(workers=0, checkpoint_every=10**6, checkpoint_minutes=1e6, log_every=EVERY)
    train(given, folder / "base", out, layout=layout, options=Options(show=False, tensorboard=False))
    measured = [row for row in read_rows(out / "all" / "log.jsonl") if "blend" in row]
    way = []
    for row in measured:  # that of step 0 is from before the first step
        done = row["step"] + 1 if row["step"] else 0
        way.append({"step": done, "losses": row["eval_held"], "shares": shares(row["blend_before"])})
    return {"rule": rule, "seed": seed, "steps": steps, "losses": way[-1]["losses"], "way": way}


def shares(blend: dict[str, float]) -> dict[str, float]:
    """Of an epoch's samples; all datasets have as many records."""
    total = sum(blend.values())
    return {name: round(beta / total, 4) for name, beta in blend.items()}


def table(rows: Sequence[dict]) -> str:
    """A line for each rule: mean and standard deviation over seeds, and how many seeds beat the fixed blend."""
    by = {(row["rule"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"Held-out losses after {rows[0]['steps']} steps, nats per supervised token, mean ± standard deviation of "
        f"{len(seeds)} seeds; shares of the samples drawn, mean over the run (`python -m bench.reblend`).",
        "",
        "| rule | hard | both easy | all learnable | noisy | better on hard | share of hard | share of noisy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rule in RULES:
        runs = [by[rule, seed] for seed in seeds]
        hard = [one["losses"]["hard"] for one in runs]
        easy = [fmean(one["losses"][name] for name in ("easy-1", "easy-2")) for one in runs]
        both = [fmean(one["losses"][name] for name in LEARNABLE) for one in runs]
        noisy = [one["losses"]["noisy"] for one in runs]
        wins = sum(loss < by["fixed", seed]["losses"]["hard"] for loss, seed in zip(hard, seeds, strict=True))
        drawn = [fmean(drawn_share(one, name) for one in runs) for name in ("hard", "noisy")]
        columns = [rule, *map(spread, (hard, easy, both, noisy)), "" if rule == "fixed" else f"{wins} of {len(seeds)}"]
        lines.append(f"| {' | '.join([*columns, *(f'{share:.2f}' for share in drawn)])} |")
    return "\n".join(lines) + "\n"


def drawn_share(one: dict, name: str) -> float:
    """Mean share of a dataset over the steps of a run."""
    ends = [measured["step"] for measured in one["way"]]
    parts = zip([0, *ends[:-1]], ends, one["way"], strict=True)
    return sum((end - begin) * measured["shares"][name] for begin, end, measured in parts) / ends[-1]


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values) if len(values) > 1 else 0.0:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            world(folder, seed)
            for rule in RULES:
                rows.append(run(folder, rule, seed, args.steps, rows[-2]["losses"] if rule == "doremi" else None))
                print(json.dumps({key: rows[-1][key] for key in ("rule", "seed", "losses")}), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_rows(args.out, rows)
    write_text(args.out.with_suffix(".md"), table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
