"""Whether an encoder that AF-Whisper's training has made helps the demo, at equal time.

    python -m bench.demo_encoder ENCODER --out bench/results/cpu/demo_encoder.jsonl [--seconds 240] [--seeds 2]

For each seed two demos train side by side for the same seconds with one thread each: one begins with random weights, as
``afn demo`` does, the other with the encoder of the folder. Both then have the demo's own start of the encoder (labels
of what is heard in every frame) and the same stages. Scores are those of held-out speakers and sounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from afn_model.files import write_rows, write_text
from afn_model.host import machine

OUT = Path(__file__).with_name("results") / "cpu" / "demo_encoder.jsonl"
ARMS = ("own start", "AF-Whisper's encoder")
RUN = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from afn_model.demo import run
out, seed, seconds, encoder = sys.argv[1:]
run(Path(out), seed=int(seed), seconds=float(seconds), encoder=encoder or None)
"""


def side_by_side(encoder: Path, seed: int, seconds: float, folder: Path) -> list[dict]:
    """Both demos of a seed, at the same time."""
    started = []
    for number, arm in enumerate(ARMS):
        out = folder / str(number)
        command = [sys.executable, "-c", RUN, str(out), str(seed), str(seconds), str(encoder) if number else ""]
        started.append((arm, out, subprocess.Popen(command, stdout=subprocess.DEVNULL)))
    rows = []
    for arm, out, process in started:
        if process.wait():
            raise ValueError(f"the demo with {arm} ended with status {process.returncode}")
        found = json.loads((out / "results.json").read_text("utf-8"))
        scores = {axis: score["score"] for axis, score in found["results"]["trained"].items()}
        rows.append({"arm": arm, "seed": seed, "seconds": seconds, "scores": scores, "steps": found["steps"]})
    return rows


def table(rows: Sequence[dict]) -> str:
    """A line for each arm and axis; means over the seeds, and each seed."""
    axes = list(rows[0]["scores"])
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"Held-out scores of the demo after {rows[0]['seconds']:g} s of training with one thread, by what its encoder "
        f"begins with; mean of {len(seeds)} seeds, then each (`python -m bench.demo_encoder`), on {machine()['cores']} "
        "cores that both runs of a seed share.",
        "",
        f"| begins with | {' | '.join(axes)} |",
        f"|---|{'---|' * len(axes)}",
    ]
    for arm in ARMS:
        runs = [row["scores"] for row in rows if row["arm"] == arm]
        cells = []
        for axis in axes:
            each = [scores[axis] for scores in runs]
            cells.append(f"{fmean(each):.1%} ({', '.join(f'{one:.1%}' for one in each)})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "encoder", type=Path, help="folder of an AF-Whisper, as afn train --curriculum afwhisper-tiny makes"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            rows += side_by_side(args.encoder, seed, args.seconds, Path(temporary))
        print(json.dumps(rows[-2:]), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_rows(args.out, rows)
    write_text(args.out.with_suffix(".md"), table(rows))


if __name__ == "__main__":
    main()
