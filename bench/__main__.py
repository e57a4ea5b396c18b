"""Benchmarks of minutes on a CPU, all or some by name: results to look at first, and to accept then.

    python -m bench all                       # measures; writes to runs/bench
    python -m bench log_mel ops
    python -m bench all --accept              # copies what is in runs/bench to bench/results

A benchmark is a module of its own with its own command (``python -m bench.log_mel --help``), which runs in a process of
its own here. It begins with the committed file, and appends to it or replaces records as its command does. Where a
picture belongs to the figures it is drawn beside them; those of what is accepted are drawn again.

Not in the list: ``bench.demo_heldout`` trains for 20 minutes, ``bench.curriculum_report`` needs a run of the tiny
curriculum, ``bench.virtual_ranks`` and ``bench.train`` a GPU, and ``bench.sm90`` rewrites RESULTS.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RUNS, RESULTS = Path("runs/bench"), Path(__file__).with_name("results")


@dataclass(frozen=True)
class Benchmark:
    """A module's command, the files it writes, and what draws them.

    Args:
        command: module and arguments; ``--out FOLDER/NAME`` is added.
        files: patterns of all files it leaves, in bench/results/<folder>; the first is what ``--out`` names.
        folder: in bench/results.
        draw: module that is called with the folder afterwards, to write its document and pictures.
    """

    command: str
    files: tuple[str, ...]
    folder: str = "cpu"
    draw: str = ""


BENCHMARKS = {
    "log_mel": Benchmark("log_mel", ("log_mel.jsonl",)),
    "features": Benchmark("features", ("features.jsonl",)),
    "asr_throughput": Benchmark("asr_throughput", ("asr_throughput.jsonl", "asr_throughput.md")),
    "front_ends": Benchmark("front_ends", ("front_ends.jsonl", "front_ends.md")),
    "encoder": Benchmark("encoder", ("encoder.jsonl",)),
    "engine": Benchmark("engine", ("engine.jsonl", "engine.md")),
    "serving": Benchmark("serving", ("serving.jsonl", "serving.md")),
    "evaluation": Benchmark("evaluation", ("evaluation.jsonl", "evaluation.md")),
    "curation": Benchmark("curation", ("curation.jsonl", "curation.md")),
    "curation_run": Benchmark("curation_run", ("curation_run.jsonl", "curation_run.md"), folder="curation"),
    "attention": Benchmark("cpu_attention", ("attention.jsonl",)),
    "decode": Benchmark("decode", ("decode.jsonl",)),
    "fuzz_audio": Benchmark("fuzz_audio", ("fuzz_audio.jsonl",)),
    "resample": Benchmark("resample", ("resample.jsonl", "resample.md")),
    "packing": Benchmark("packing", ("packing.jsonl",)),
    "boundary": Benchmark("boundary", ("boundary.jsonl",)),
    "patch": Benchmark("patch", ("patch.jsonl",)),
    "grpo": Benchmark("grpo", ("grpo.jsonl",)),
    "data": Benchmark("data", ("data.jsonl",)),
    "feed": Benchmark("feed", ("feed.jsonl", "feed.md")),
    "syncs": Benchmark("syncs", ("syncs.jsonl", "syncs.md")),
    "sequence_parallel": Benchmark("sequence_parallel", ("sequence_parallel.jsonl",)),
    "reblend": Benchmark("reblend", ("reblend.jsonl", "reblend.md")),
    "demo_encoder": Benchmark(
        "demo_encoder runs/afwhisper-tiny/talkers/model", ("demo_encoder.jsonl", "demo_encoder.md")
    ),
    "fp8_training": Benchmark("fp8_training runs/demo", ("fp8_training.jsonl", "fp8_training.md")),
    "resume": Benchmark("resume", ("resume.jsonl",)),
    "batch_kills": Benchmark("batch_kills", ("batch_kills.jsonl",)),
    "fuzz": Benchmark("fuzz", ("fuzz.jsonl",)),
    "stated_times": Benchmark("stated_times", ("stated_times.json",)),
    "ops": Benchmark("run --device cpu --first", ("ops.jsonl", "ops.md", "*.png"), draw="report"),
    "adapters": Benchmark("adapters", ("adapters.md",), folder="memory"),
    "goodput": Benchmark("goodput", ("goodput.jsonl", "goodput.md"), folder="simulated"),
    "layouts": Benchmark("layouts", ("layouts.jsonl", "layouts.md"), folder="simulated"),
    "memory": Benchmark("memory", ("memory.jsonl", "memory.md"), folder="memory"),
}


def run(benchmark: Benchmark, runs: Path, results: Path) -> bool:
    """Measures and draws into the folder of runs; whether it succeeded."""
    folder = runs / benchmark.folder
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / benchmark.files[0]
    committed = results / benchmark.folder / benchmark.files[0]
    if committed.is_file():
        shutil.copyfile(committed, out)
    module, *arguments = benchmark.command.split()
    commands = [[f"bench.{module}", *arguments, "--out", str(out)]]
    commands += [[f"bench.{benchmark.draw}", str(folder)]] if benchmark.draw else []
    return all(subprocess.run([sys.executable, "-m", *words], check=False).returncode == 0 for words in commands)


def accept(benchmark: Benchmark, runs: Path, results: Path) -> list[Path]:
    """Copies what was measured to the committed results; returns the files there.

    Raises:
        ValueError: it has not been measured.
    """
    folder = runs / benchmark.folder
    if not (folder / benchmark.files[0]).is_file():
        raise ValueError(f"nothing to accept: {folder / benchmark.files[0]} is not there")
    found = [file for pattern in benchmark.files for file in sorted(folder.glob(pattern))]
    (results / benchmark.folder).mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(file, results / benchmark.folder / file.name)) for file in found]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=["all", *BENCHMARKS], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--accept", action="store_true", help="measure nothing: copy runs/bench to bench/results")
    args = parser.parse_args(arguments)
    names = list(BENCHMARKS) if "all" in args.names else args.names
    failed, accepted = [], set()
    for name in names:
        if args.accept:
            try:
                print(*accept(BENCHMARKS[name], RUNS, RESULTS), sep="\n")
                accepted.add(BENCHMARKS[name].folder)
            except ValueError as error:
                print(f"{name}: {error}", file=sys.stderr)
                failed.append(name)
            continue
        print(f"== {name}", flush=True)
        if not run(BENCHMARKS[name], RUNS, RESULTS):
            failed.append(name)
    for folder in sorted(accepted):  # a picture of other figures than its data's fails a test
        command = [sys.executable, "-m", "bench.pictures", str(RESULTS / folder)]
        failed += ["pictures"] if subprocess.run(command, check=False).returncode else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
