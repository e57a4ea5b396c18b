"""The simulated training step of ``afn_distributed.simulate`` as tables, a document and a picture: nothing is measured.

python -m bench.simulate [--gpus 128] [--tokens 8192 24576 131072] [--out bench/results/simulated/step]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from afn_distributed.costs import ASSUMED
from afn_distributed.simulate import RECORDING, choose, evaluated, packed, recordings
from afn_model.files import write_rows, write_text
from bench.simulate_plot import draw, markdown, section

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
# Other values that assumptions may have in truth; the last table has the best layout for each.
DOUBTS = (
    {"attention": 400e12, "attention_backward": 300e12},
    {"matmul": 550e12},
    {"nvlink": 200e9},
    {"ib": 23e9, "across": 125e9},
    {"memory": 72e9},
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="An event simulation of one training step: nothing is measured.")
    parser.add_argument("--gpus", type=int, default=128, help="whose table is printed; default 128")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[8192, 24576, 131072], help="of a group's packed batch"
    )
    parser.add_argument("--limit", type=int, default=1 << 22, help="most tokens of a step over all groups; default 4M")
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    parser.add_argument("--out", type=Path, help="write PREFIX.jsonl, PREFIX.md and PREFIX.png, for 8 to 1,024 GPUs")
    args = parser.parse_args(arguments)
    sizes = sorted({args.gpus, *SIZES}) if args.out else [args.gpus]
    rows, texts = {}, []
    for tokens in args.tokens:
        batch = packed(tokens, args.seed)
        rows |= {(tokens, gpus): evaluated(gpus, tokens, batch) for gpus in sizes}
        if found := rows[tokens, args.gpus]:
            texts.append(section(f"{args.gpus:,} GPUs, {tokens:,} tokens a group", batch, found, args.limit))
    most, lines = max(args.tokens), [line for found in rows.values() for line in found]
    if most > RECORDING.total:
        batch = recordings(most)
        found = evaluated(args.gpus, most, batch, "recordings")
        title = f"{args.gpus:,} GPUs, {most:,} tokens a group, of recordings of half an hour"
        texts.append(section(title, batch, found, args.limit))
        lines += found
    print("\n\n".join(texts))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        given = {"kind": "assumptions", "measured": False, **asdict(ASSUMED), "seed": args.seed}
        doubts = []
        for doubt in DOUBTS:
            other, tried = replace(ASSUMED, **doubt), {}
            for tokens in args.tokens:
                tried[tokens] = evaluated(args.gpus, tokens, packed(tokens, args.seed), assumptions=other)
                if best := choose(tried[tokens], args.limit):
                    lines.append({**best, "doubt": doubt})
            doubts.append((doubt, tried))
        write_rows(args.out.with_suffix(".jsonl"), [given, *lines])
        text = markdown("\n\n".join(texts), rows, doubts, args.gpus, args.limit)
        write_text(args.out.with_suffix(".md"), text)
        draw(rows, args.gpus, args.limit, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
