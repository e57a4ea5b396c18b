"""How well a run of ``afn demo`` answers many more held-out questions than the run itself asked.

    python -m bench.demo_heldout RUN [RUN ...] [--clips 3000] [--out results.jsonl]

The clips are drawn afresh (another seed than any run's), from the held-out speakers.
"""

import argparse
import json
from pathlib import Path

from afn_model import AFNext, AFNextProcessor
from afn_model.demo.report import answer, score, table
from afn_model.world.corpus import Corpus, majority_answer
from bench.measure import machine

SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--out", type=Path, help="append a record per run to this file, one JSON object per line")
    args = parser.parse_args()
    clips = list(Corpus(SEED, "heldout", args.clips))
    common = majority_answer(clips)
    results = {"majority": score(clips, [common[clip.kind] for clip in clips])}
    for run in args.runs:
        seed = json.loads((run / "results.json").read_text())["seed"]
        model, processor = AFNext.from_pretrained(run), AFNextProcessor.from_pretrained(run)
        results[f"seed {seed}"] = score(clips, answer(model, processor, clips))
        if args.out:
            record = {"benchmark": "demo_heldout", "seed": seed, "scores": results[f"seed {seed}"], **machine("cpu")}
            with args.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
