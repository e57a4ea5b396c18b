"""``afn demo``: from nothing to a small model that answers questions about recordings, in minutes on a CPU.

Three basic tasks of the synthetic world: which word is said, which sound is heard, when does it start.
The base model gets a short start (``bootstrap``); then the trainer takes over, as ``afn train`` would with a curriculum
of two stages on corpora on disk: the adaptor alone learns to connect encoder and language model, then everything trains
together. The result is evaluated on held-out speakers and sounds.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from afn_model.afnext import AFNext
from afn_model.afwhisper import AFWhisper
from afn_model.bootstrap.fit import Part, Trainee, fit
from afn_model.bootstrap.lessons import Lessons
from afn_model.bootstrap.tiny import build
from afn_model.data.index import Corpus
from afn_model.demo.plot import loss_curves
from afn_model.demo.report import constant_answers, examples, table
from afn_model.eval.heldout import answer
from afn_model.files import write_json
from afn_model.host import machine
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring.metrics import by_axis
from afn_model.train.curriculum import Curriculum, Stage, Start
from afn_model.train.prepare import DONE
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train as train_curriculum
from afn_model.train.validate import MODEL
from afn_model.world.build import write_world
from afn_model.world.record import BASICS
from afn_model.world.scene import BASIC
from afn_model.world.words import load_bank

BAR = "{desc:<38}{percentage:3.0f}%|{bar}| {elapsed} < {remaining} left"
CLIPS = 6000  # to train on
RECORDS = 16  # in a batch of written lessons

# Shares of the time.
BASE = (
    ("encoder", ("model.encoder", "labels"), 0.50, 3e-3),
    ("language model", ("model.language_model", "model.lm_head"), 0.07, 2e-3),
)
STAGES = (("adaptor", ("adaptor",), 0.04, 2e-3), ("everything", ("all",), 0.39, 1.5e-3))


def curriculum(out: Path, seed: int, seconds: float, steps: float) -> Curriculum:
    """The two stages on the corpora in ``out``."""
    stages = []
    for name, trains, share, lr in STAGES:
        stages.append(
            Stage(
                name,
                trains,
                dict.fromkeys(BASICS, 1.0),
                start=Start(stages[-1].name) if stages else Start(),
                context=2048,
                batch_tokens=2048,
                chunk=1024,
                epochs=math.inf,
                steps=None if math.isinf(steps) else int(steps),
                minutes=None if math.isinf(seconds) else share * seconds / 60,
                lr=lr,
                betas=(0.9, 0.98),
                weight_decay=0.01,
            )
        )
    return Curriculum("demo", tuple(stages), corpora(out, "train"), seed)


def corpora(out: Path, split: str) -> dict[str, Path]:
    """The records of each task."""
    return {task: out / "corpus" / split / f"{task}.jsonl" for task in BASICS}


def train(
    model: AFNext, processor: AFNextProcessor, out: Path, seed: int, seconds: float, steps: float
) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]], dict[str, int]]:
    """Base model and stages under one progress bar.

    Returns:
        the second at which each part began, the losses of each as (second, value), and the steps of each.
    """
    began, starts, done = time.perf_counter(), {}, 0.0
    losses: dict[str, list[tuple[float, float]]] = {"labels": [], "answers": []}
    counts: dict[str, int] = {}
    with tqdm(total=100, bar_format=BAR) as bar:

        def show(name: str, series: str, share: float, progress: float, loss: float) -> None:
            losses[series].append((time.perf_counter() - began, loss))
            bar.set_description_str(f"{name}: {series} {loss:.2f}", refresh=False)
            bar.update(max(100 * (done + share * progress) - bar.n, 0))

        trainee = Trainee(model, (len(BASIC.labels),))
        for (name, trains, share, lr), kind, series in zip(BASE, ("medley", "written"), losses, strict=True):
            starts[name] = time.perf_counter() - began
            part = Part(name, trains, lr, share * seconds, steps)
            lessons = Lessons(kind, processor, seed, [*corpora(out, "train").values()], style=BASIC, records=RECORDS)
            counts[name] = fit(trainee, part, lessons.batches(), partial(show, name, series, share))
            done += share
        model.save_pretrained(out / "base")
        processor.save_pretrained(out / "base")

        shutil.rmtree(out / "run", ignore_errors=True)  # stages of an earlier demo started from another base
        shares = {name: share for name, _, share, _ in STAGES}

        def on_row(row: dict) -> None:
            starts.setdefault(row["stage"], time.perf_counter() - began - row["seconds"])
            show(row["stage"], "answers", shares[row["stage"]], row["progress"], row["loss"])

        for stage in STAGES:
            train_curriculum(
                curriculum(out, seed, seconds, steps),
                out / "base",
                out / "run",
                layout=RunLayout(log_every=5, checkpoint_every=1000),
                only=stage[0],
                options=Options(show=False, tensorboard=False, on_row=on_row),
            )
            counts[stage[0]] = json.loads((out / "run" / stage[0] / DONE).read_text("utf-8"))["step"]
            done += stage[2]
        bar.update(100 - bar.n)
    return starts, losses, counts


def run(
    out: Path,
    *,
    seed: int = 0,
    seconds: float = 360.0,
    steps: float = math.inf,
    heldout: int = 1200,
    clips: int = CLIPS,
    questions: int = 6,
    encoder: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """The whole demo; writes the run folder and returns what its results.json holds.

    Args:
        out: run folder: checkpoint, tokenizer, corpus/, base/, run/ (the trainer's), losses.png, results.json.
        seed: of weights and corpus.
        seconds: how long to train.
        steps: bound on the steps of each part.
        heldout: recordings to evaluate on, of all tasks together.
        clips: recordings to train on, of all tasks together.
        questions: held-out questions to show with their answers.
        encoder: folder of an AF-Whisper whose encoder is the model's from the beginning; random weights if None.
        say: where lines of text go.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    say("Speaking words in many voices")
    with tqdm(total=1, bar_format=BAR) as bar:
        for split in ("train", "heldout"):
            bar.set_description_str(f"{split} voices")
            load_bank(split, on_step=lambda done, total: (setattr(bar, "total", total), bar.update(done - bar.n)))
    sizes = {name: dict.fromkeys(BASICS, -(-count // 3)) for name, count in (("train", clips), ("heldout", heldout))}
    with tqdm(total=1, bar_format=BAR) as bar:
        bar.set_description_str("recordings")
        write_world(
            out / "corpus",
            **sizes,
            seed=seed,
            on_step=lambda done, total: (setattr(bar, "total", total), bar.update(done - bar.n)),
            shards=False,
        )
    folder = out / "corpus" / "heldout"
    records = [record for path in corpora(out, "heldout").values() for record in Corpus(path)]

    def ask(model: AFNext) -> list[str]:
        return answer(model.eval(), processor, records, folder, max_new_tokens=12)

    model, processor = build(seed, None if encoder is None else AFWhisper.from_pretrained(encoder))
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    say(f"Training {size:.1f} M parameters for about {seconds:.0f} s")
    untrained_scores = by_axis(records, ask(model))
    trained_from = time.perf_counter()
    starts, losses, steps_done = train(model, processor, out, seed, seconds, steps)
    training_seconds = time.perf_counter() - trained_from
    loss_curves(out / "losses.png", losses, starts)
    model = AFNext.from_pretrained(out / "run" / STAGES[-1][0] / MODEL)
    model.save_pretrained(out)
    processor.save_pretrained(out)

    say(f"Answering {len(records)} held-out questions")
    answers = ask(model)
    results = {
        "trained": by_axis(records, answers),
        "untrained": untrained_scores,
        "majority answer": by_axis(records, constant_answers(records)),
    }
    say("\n" + table(results) + "\n")
    say(examples(records, answers, folder, questions))
    report = {
        "results": results,
        "seed": seed,
        "steps": steps_done,
        "training_seconds": round(training_seconds, 1),
        "total_seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
    }
    write_json(out / "results.json", report)
    return report
