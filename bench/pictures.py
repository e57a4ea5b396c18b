"""A picture of every results file that has figures: draws what is there.

    python -m bench.pictures [bench/results/cpu ...]

Each .png stands beside its data and holds their hash, so that a test finds a picture that is older than its data. Of a
.jsonl that grows, the latest record is drawn. Colours are those of afn_model.plot_style.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afn_model.files import atomic_path
from afn_model.plot_style import plotting, save
from bench import drawings

RESULTS = Path(__file__).with_name("results")
KEYWORD = b"Data"  # of the text in a PNG that names its data


@dataclass(frozen=True)
class Picture:
    """What a .png is drawn from, and what draws it.

    Args:
        files: patterns; all that are there are read, in the order of their names.
        draw: called with pyplot and, for each pattern, the records of its files; returns the figure.
    """

    files: tuple[str, ...]
    draw: Callable[..., Any]


NO_PICTURE = {
    "afwhisper-tiny.json": "rates by stage, task and language: afwhisper-tiny.md has a table for each task",
    "afwhisper-tiny-seed1.json": "the same of another seed: docs/af-whisper.md has both side by side",
    "asr_throughput.jsonl": "two trainers and their ratio: asr_throughput.md has them with what was padded",
    "before.jsonl": "kernels as they were: python -m bench.sm90 --against it prints what changed",
    "demo_encoder.jsonl": "two encoders to begin with, three scores each: demo_encoder.md has them",
    "estimates.jsonl": "estimates are good to 20 or 30 %: a table of two digits says it, bars would claim more",
    "findings.jsonl": "rules that kernels break on purpose, with the reason of each",
    "first.jsonl": "right or wrong, and where seconds went: timeline.png and sweeps.png of bench.first.report",
    "sweep.jsonl": "what fits is one word: sweep.md has the few rows that spill",
    "machine.json": "what ran beside it: the machine and its packages",
    "curation_run.jsonl": "yes or no: the same bytes, whenever it was killed",
    "batch_kills.jsonl": "yes or no: every line once, whenever it was killed",
    "fp8_training.jsonl": "losses, scores and answers of three precisions, nearer to each other than a picture shows",
    "fp8.jsonl": "four rows of scores that differ by less than a picture shows",
    "engine.jsonl": "a number and a bar for each claim, in units of their own: engine.md has both",
    "curation.jsonl": "rates that differ by a factor of 10,000: curation.md has them, and what they add up to",
    "evaluation.jsonl": "a number and a bar for each claim: evaluation.md has both",
    "serving.jsonl": "a number and a bar for each claim: serving.md has both",
    "goodput.jsonl": "predicted for nine cases, by assumed rates: goodput.md has them, curves would claim more",
    "reblend.jsonl": "four rules by three seeds, of which the end counts: reblend.md has it",
    "resume.jsonl": "yes or no: what was killed, and that every loss is the same to the last bit",
    "layouts.jsonl": "a layout and its best rival by stage: the table beside it says which and why",
    "memory.jsonl": "sizes that add up to what fits or does not: memory.md has the sum and its parts in each row",
    "feed.jsonl": "what a rank needs against what six workers give: feed.md has both in each row",
    "syncs.jsonl": "how often the host waits, 0 where all is well: a table says it",
    "margins.jsonl": "one row per test, of which only the first few matter: margins.md has them in order",
    "versions.jsonl": "yes or no: what passes with which version; a table says it",
    "talk-tiny.json": "rates by voice and speaker: talk-tiny.md has them; a run draws spectrograms of its own",
    "stated_times.json": "shares that are all 0 or next to 1: the numbers say it",
    "lengths.json": "every count is 1, one binary for all lengths, which a test asserts",
}
DRAWN_ELSEWHERE = {"curriculum.json": ("curriculum.png", "bench.curriculum_report, from logs that are not kept here")}

PICTURES = {
    "attention.png": Picture(("attention.jsonl",), drawings.attention),
    "boundary.png": Picture(("boundary.jsonl",), drawings.boundary),
    "data.png": Picture(("data.jsonl",), drawings.data),
    "decode.png": Picture(("decode.jsonl",), drawings.decode),
    "demo.png": Picture(("demo-seed*.json", "demo_heldout.jsonl"), drawings.demo),
    "encoder.png": Picture(("encoder.jsonl",), drawings.encoder),
    "features.png": Picture(("features.jsonl",), drawings.features),
    "front_ends.png": Picture(("front_ends.jsonl",), drawings.front_ends),
    "fuzz.png": Picture(("fuzz.jsonl",), drawings.fuzz),
    "fuzz_audio.png": Picture(("fuzz_audio.jsonl",), drawings.fuzz_audio),
    "grpo.png": Picture(("grpo.jsonl",), drawings.grpo),
    "log_mel.png": Picture(("log_mel.jsonl",), drawings.log_mel),
    "packing.png": Picture(("packing.jsonl",), drawings.packing),
    "patch.png": Picture(("patch.jsonl",), drawings.patch),
    "peers.png": Picture(("ops.jsonl",), drawings.peers),
    "resample.png": Picture(("resample.jsonl",), drawings.resample),
    "sequence_parallel.png": Picture(("sequence_parallel.jsonl",), drawings.sequence_parallel),
    "train.png": Picture(("train.jsonl",), drawings.train),
    "virtual_ranks.png": Picture(("virtual_ranks.jsonl",), drawings.virtual_ranks),
    "kernels.png": Picture(("kernels.jsonl",), drawings.kernels),
}


def read(path: Path) -> list[dict]:
    """The records of a .jsonl, or a .json as one."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]


def found(folder: Path, picture: Picture) -> list[list[Path]]:
    """The files of each of its patterns."""
    return [sorted(folder.glob(pattern)) for pattern in picture.files]


def digest(files: list[list[Path]]) -> str:
    """Of the data that a picture is drawn from."""
    return hashlib.sha256(b"".join(path.read_bytes() for some in files for path in some)).hexdigest()


def draw(folder: Path) -> list[Path]:
    """Draws every picture whose data the folder has; returns the files."""
    drawn = []
    for name, picture in PICTURES.items():
        files = found(folder, picture)
        if not all(files):
            continue
        with plotting() as plt:
            figure = picture.draw(plt, *([x for path in some for x in read(path)] for some in files))
            if figure is not None:
                save(figure, folder / name)
                stamp(folder / name, digest(files))
                drawn.append(folder / name)
    return drawn


def stamp(path: Path, text: str) -> None:
    """Writes a text behind the header of a PNG."""
    data = path.read_bytes()
    body = b"tEXt" + KEYWORD + b"\0" + text.encode()
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(data[:33] + chunk + data[33:])  # signature 8, header 25


def stamped(path: Path) -> str:
    """What ``stamp`` wrote, or ""."""
    data = path.read_bytes()
    mark = b"tEXt" + KEYWORD + b"\0"
    return data[data.index(mark) + len(mark) :][:64].decode() if mark in data else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="default: every folder of bench/results")
    args = parser.parse_args(arguments)
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("pictures need matplotlib: pip install 'afn-kernels[bench]'")
    for folder in args.folders or sorted(x for x in RESULTS.iterdir() if x.is_dir()):
        print(*draw(folder), sep="\n")


if __name__ == "__main__":
    main()
