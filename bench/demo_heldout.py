"""How well runs of ``afn demo`` answer many more held-out questions than the runs themselves asked.

    python -m bench.demo_heldout --seeds 0 1 2 --train     # trains first, 6 minutes a seed on two quiet cores
    python -m bench.demo_heldout --seeds 0 1 2             # the same runs again

The questions are drawn afresh (another seed than any run's), about held-out speakers. Writes ``demo_heldout.jsonl``, a
row for each seed, and with ``--train`` what each run says of itself, ``demo-seed*.json``.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from afn_model import AFNext, AFNextProcessor
from afn_model.data.index import Corpus
from afn_model.demo import run
from afn_model.demo.report import constant_answers, table
from afn_model.eval.heldout import answer
from afn_model.files import write_rows
from afn_model.host import machine
from afn_model.scoring.metrics import by_axis
from afn_model.world.build import write_world
from afn_model.world.record import BASICS
from bench.measure import results

QUESTIONS_SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", action="store_true", help="make the runs first")
    parser.add_argument("--seconds", type=float, default=360.0, help="of training")
    parser.add_argument("--clips", type=int, default=3000, help="held-out questions")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the run of every seed, demo-seedN")
    parser.add_argument("--out", type=Path, default=results("cpu"), help="folder of the results")
    args = parser.parse_args()
    folders = {seed: args.runs / f"demo-seed{seed}" for seed in args.seeds}
    if args.train:
        for seed, folder in folders.items():
            # A run goes on from what it finds: a measurement starts from nothing.
            shutil.rmtree(folder, ignore_errors=True)
            run(folder, seed=seed, seconds=args.seconds)
            shutil.copy(folder / "results.json", args.out / f"{folder.name}.json")
    with tempfile.TemporaryDirectory(prefix="afn-heldout-") as home:
        sizes = dict.fromkeys(BASICS, -(-args.clips // 3))
        paths = write_world(home, train={}, heldout=sizes, seed=QUESTIONS_SEED)["heldout"]
        records = [record for path in paths.values() for record in Corpus(path)]
        scores = {"majority": by_axis(records, constant_answers(records))}
        rows = []
        for seed, folder in folders.items():
            model, processor = AFNext.from_pretrained(folder), AFNextProcessor.from_pretrained(folder)
            answers = answer(model, processor, records, Path(home) / "heldout", max_new_tokens=12)
            scores[f"seed {seed}"] = by_axis(records, answers)
            row = {"benchmark": "demo_heldout", "seed": seed, "scores": scores[f"seed {seed}"], **machine("cpu")}
            rows.append(row)
    write_rows(args.out / "demo_heldout.jsonl", rows)
    print(table(scores))


if __name__ == "__main__":
    main()
