"""What FP8 keys, values and weights cost in accuracy: held-out scores of a trained model, with and without.

    python -m bench.fp8 MODEL HELDOUT --out bench/results/cpu/fp8.jsonl

MODEL is a model folder and HELDOUT a folder of held-out records of the synthetic world, as the tiny curriculum writes
both. Every variant answers the same records. The numbers are those of a GPU's arithmetic up to the order of sums:
products of FP8 values are exact in float32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from afn_model import AFNext, AFNextProcessor
from afn_model.bootstrap.tiny_curriculum import REWARDED, TRAIN, mean_reward, read
from afn_model.eval.heldout import answer
from afn_model.host import machine
from afn_model.infer.engine import Engine
from afn_model.network.joint import FP8
from afn_model.scoring.metrics import by_axis

VARIANTS = {
    "float32": (False, None),
    "keys and values in FP8": (False, FP8),
    "weights in FP8": (True, None),
    "both": (True, FP8),
}


def scores(model_folder: Path, heldout: Path, weights: bool, kv: torch.dtype | None) -> tuple[dict, list[str]]:
    model = AFNext.from_pretrained(model_folder, weights="fp8" if weights else None)
    processor = AFNextProcessor.from_pretrained(model_folder)
    records = read(heldout, list(TRAIN))
    answers = answer(Engine(model, processor, kv_dtype=kv), processor, records, heldout)
    by = by_axis(records, answers)
    found = {axis: round(row["score"], 4) for axis, row in by.items()}
    mean = sum(found.values()) / len(found)
    rewarded = [pair for pair in zip(records, answers, strict=True) if pair[0]["axis"] in REWARDED]
    return {
        "records": len(records),
        "mean": round(mean, 4),
        "reward": mean_reward(*zip(*rewarded, strict=True)),
        "axes": found,
    }, answers


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--out", type=Path, help="write the rows here, one JSON object per line")
    args = parser.parse_args(argv)
    rows, first = [], None
    for name, variant in VARIANTS.items():
        row, answers = scores(args.model, args.heldout, *variant)
        first = answers if first is None else first
        same = sum(a == b for a, b in zip(answers, first, strict=True)) / len(first)
        rows.append({"benchmark": "fp8", "variant": name, **row, "same_answers": round(same, 4), **machine("cpu")})
        print({key: rows[-1][key] for key in ("variant", "mean", "reward", "same_answers")}, flush=True)
    if args.out:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
