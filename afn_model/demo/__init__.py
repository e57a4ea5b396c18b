"""``afn demo``: from nothing to a small model that answers questions about recordings, in minutes on a CPU.

The base model gets a short start (``demo.base``); then the trainer takes over, as ``afn train`` would with a curriculum
of two stages on a corpus on disk: the adaptor alone learns to connect encoder and language model, then everything
trains together. The result is tried on speakers and sounds that training never held.
"""

from __future__ import annotations

import json
import math
import platform
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from afn_model.afnext import AFNext
from afn_model.bootstrap.fit import Part, Trainee, fit
from afn_model.bootstrap.lessons import Lessons
from afn_model.config import preset
from afn_model.data.index import build as build_index
from afn_model.demo.plot import loss_curves
from afn_model.demo.report import answer, score, table
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.template import DEFAULT_TEMPLATE
from afn_model.prompt.tokenizer import make_tokenizer
from afn_model.train.curriculum import Curriculum, Layout, Stage, Start
from afn_model.train.trainer import DONE, MODEL, Options
from afn_model.train.trainer import train as train_curriculum
from afn_model.world.corpus import Corpus, majority_answer, texts, write_corpus
from afn_model.world.mixer import LABELS
from afn_model.world.words import load_bank

# The released models' system prompt would be half of every prompt here.
SYSTEM = "Listen and answer."
BAR = "{desc:<38}{percentage:3.0f}%|{bar}| {elapsed} < {remaining} left"
CLIPS = 6000  # in the training corpus

# Shares of the time.
BASE = (
    ("encoder", ("model.encoder", "labels"), 0.50, 3e-3),
    ("language model", ("model.language_model", "model.lm_head"), 0.07, 2e-3),
)
STAGES = (("adaptor", ("adaptor",), 0.04, 2e-3), ("everything", ("all",), 0.39, 1.5e-3))


def curriculum(out: Path, seed: int, seconds: float, steps: float) -> Curriculum:
    """The two stages on the corpus in ``out``."""
    stages = []
    for name, trains, share, lr in STAGES:
        stages.append(
            Stage(
                name,
                trains,
                {"clips": 1.0},
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
    return Curriculum("demo", tuple(stages), {"clips": out / "corpus" / "train.jsonl"}, seed)


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

        trainee = Trainee(model, (len(LABELS),))
        for (name, trains, share, lr), kind, series in zip(BASE, ("medley", "written"), losses, strict=True):
            starts[name] = time.perf_counter() - began
            part = Part(name, trains, lr, share * seconds, steps)
            lessons = Lessons(kind, processor, seed).feed()
            counts[name] = fit(trainee, part, lessons, partial(show, name, series, share))
            done += share
        model.save_pretrained(out / "base")
        processor.save_pretrained(out / "base")

        shares = {name: share for name, _, share, _ in STAGES}

        def on_row(row: dict) -> None:
            starts.setdefault(row["stage"], time.perf_counter() - began - row["seconds"])
            show(row["stage"], "answers", shares[row["stage"]], row["progress"], row["loss"])

        for stage in STAGES:
            train_curriculum(
                curriculum(out, seed, seconds, steps),
                out / "base",
                out / "run",
                layout=Layout(log_every=5, checkpoint_every=1000),
                only=stage[0],
                options=Options(show=False, tensorboard=False, on_row=on_row),
            )
            counts[stage[0]] = json.loads((out / "run" / stage[0] / DONE).read_text("utf-8"))["step"]
            done += stage[2]
        bar.update(100 - bar.n)
    return starts, losses, counts


def build(seed: int) -> tuple[AFNext, AFNextProcessor]:
    """A tiny model with random weights, and a processor whose tokenizer covers the demo's texts."""
    words = [*texts(), SYSTEM, SYSTEM, "system", "user", "assistant"] * 2
    return untrained(seed, words, preset("tiny").text.vocab_size)


def untrained(seed: int, words: list[str], vocabulary: int, **text: int) -> tuple[AFNext, AFNextProcessor]:
    """A tiny model with random weights, other sizes of its language model given by name, and its processor.

    Args:
        seed: of the weights.
        words: texts that the tokenizer learns from.
        vocabulary: its size at most.
        text: fields of the language model's configuration.
    """
    torch.manual_seed(seed)
    tiny = preset("tiny")
    tokenizer = make_tokenizer(words, vocabulary)
    template = re.sub(r"You are Audio Flamingo-Next[^<]*", SYSTEM, DEFAULT_TEMPLATE.read_text("utf-8"))
    processor = AFNextProcessor(tokenizer, chat_template=template, max_positions=tiny.text.max_positions)
    config = replace(
        tiny,
        text=replace(tiny.text, vocab_size=tokenizer.get_vocab_size(), **text),
        audio_token_id=processor.token_id("<sound>"),
        audio_bos_token_id=processor.token_id("<|sound_bos|>"),
        audio_eos_token_id=processor.token_id("<|sound_eos|>"),
        stop_token_ids=(processor.token_id("<|im_end|>"), processor.token_id("<|endoftext|>")),
        repetition_penalty=1.0,
    )
    return AFNext(config), processor


def run(
    out: Path,
    *,
    seed: int = 0,
    seconds: float = 360.0,
    steps: float = math.inf,
    heldout: int = 1200,
    clips: int = CLIPS,
    say: Callable[[str], None] = print,
) -> dict:
    """The whole demo; writes the run folder and returns what its results.json holds.

    Args:
        out: run folder: checkpoint, tokenizer, corpus/, base/, run/ (the trainer's), losses.png, results.json.
        seed: of weights and corpus.
        seconds: how long to train.
        steps: bound on the steps of each part.
        heldout: clips to evaluate on, of all kinds together.
        clips: recordings to train on.
        say: where lines of text go.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    say("Speaking words in two languages and many voices")
    with tqdm(total=1, bar_format=BAR) as bar:
        for split in ("train", "heldout"):
            bar.set_description_str(f"{split} voices")
            load_bank(split, on_step=lambda done, total: (setattr(bar, "total", total), bar.update(done - bar.n)))
    with tqdm(total=clips, bar_format=BAR) as bar:
        bar.set_description_str("recordings")
        write_corpus(out / "corpus", clips, 12, seed, on_step=lambda done, total: bar.update(min(done, clips) - bar.n))
    build_index(out / "corpus" / "train.jsonl")
    asked = list(Corpus(seed, "heldout", heldout))

    model, processor = build(seed)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    say(f"Training {size:.1f} M parameters for about {seconds:.0f} s")
    untrained = score(asked, answer(model.eval(), processor, asked))
    trained_from = time.perf_counter()
    starts, losses, steps_done = train(model, processor, out, seed, seconds, steps)
    training_seconds = time.perf_counter() - trained_from
    loss_curves(out / "losses.png", losses, starts)
    last = out / "run" / STAGES[-1][0] / MODEL
    model = AFNext.from_pretrained(last)
    model.save_pretrained(out)
    processor.save_pretrained(out)

    say(f"Answering {len(asked)} held-out questions")
    common = majority_answer(asked)
    results = {
        "trained": score(asked, answer(model, processor, asked)),
        "untrained": untrained,
        "majority answer": score(asked, [common[clip.kind] for clip in asked]),
    }
    say("\n" + table(results) + "\n")
    report = {
        "results": results,
        "seed": seed,
        "steps": steps_done,
        "training_seconds": round(training_seconds, 1),
        "total_seconds": round(time.perf_counter() - began, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report
