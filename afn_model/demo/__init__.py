"""``afn demo``: from nothing to a small model that answers questions about recordings, in minutes on a CPU.

The paper's curriculum starts from a pretrained encoder and a pretrained language model. Here both get a short start of
their own: the encoder labels what it hears, the language model answers questions about written timelines. Then the
adaptor alone learns to connect the two, then everything trains together, and the result is tried on speakers and
sounds that training never held.
"""

from __future__ import annotations

import json
import math
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from afn_model.chat import DEFAULT_TEMPLATE
from afn_model.config import preset
from afn_model.data.corpus import Corpus, majority_answer, texts, write_corpus
from afn_model.data.scenes import LABELS
from afn_model.data.words import load_bank
from afn_model.demo.lessons import Lesson, Lessons
from afn_model.demo.report import answer, score, table
from afn_model.eval.plot import loss_curves
from afn_model.model import AFNext
from afn_model.processor import AFNextProcessor, make_tokenizer
from afn_model.train.sft import LogRow, LogWriter, Stage, train_stage

# The released models' system prompt would be half of every prompt here.
SYSTEM = "Listen and answer."
BAR = "{desc:<38}{percentage:3.0f}%|{bar}| {elapsed} < {remaining} left"


@dataclass(frozen=True)
class Part:
    """A stage of the demo: what it learns from, what it trains, and its share of the time."""

    name: str
    lessons: str
    trains: tuple[str, ...]
    share: float
    lr: float


PARTS = (
    Part("encoder", "medley", ("model.encoder", "labels"), 0.54, 3e-3),
    Part("language model", "written", ("model.language_model", "model.lm_head"), 0.07, 2e-3),
    Part("adaptor", "spoken", ("model.adaptor",), 0.04, 2e-3),
    Part("everything", "spoken", ("model", "labels"), 0.35, 1.5e-3),
)


class Trainee(nn.Module):
    """What the demo trains: the model, and scores over the labels of an audio token that only training uses."""

    def __init__(self, model: AFNext):
        super().__init__()
        self.model = model
        self.labels = nn.Linear(model.config.audio.width, 1 + len(LABELS))

    def losses(self, lesson: Lesson, part: Part) -> dict[str, Tensor]:
        """Answers where there is text, and labels of audio tokens where the encoder is trained."""
        learns_labels = "labels" in part.trains
        with torch.set_grad_enabled(learns_labels):
            encoded = self.model.encode_batch(lesson.batch)
        losses = {}
        if lesson.batch.labels is not None:
            losses["answers"] = self.model.loss(lesson.batch, encoded=encoded)
        if learns_labels:
            weight = 0.3 if losses else 1.0
            losses["labels"] = weight * F.cross_entropy(self.labels(encoded[0]), lesson.heard)
        return losses


def train(
    trainee: Trainee, processor: AFNextProcessor, seed: int, seconds: float, steps: float, log: LogWriter
) -> dict[str, float]:
    """Runs every part under one progress bar; returns the second at which each began."""
    began, starts, done = time.perf_counter(), {}, 0.0
    with tqdm(total=100, bar_format=BAR) as bar:
        for part in PARTS:
            starts[part.name] = time.perf_counter() - began
            feed = Lessons(part.lessons, processor, seed).feed()

            def on_step(row: LogRow, part: Part = part, done: float = done) -> None:
                log(replace(row, seconds=time.perf_counter() - began))
                losses = " ".join(f"{name} {value:.2f}" for name, value in row.losses.items())
                bar.set_description_str(f"{part.name}: {losses}", refresh=False)
                bar.update(100 * (done + part.share * row.progress) - bar.n)

            stage = Stage(part.name, part.trains, part.share * seconds, steps, part.lr)
            train_stage(trainee, stage, lambda feed=feed, part=part: trainee.losses(next(feed), part), on_step)
            done += part.share
        bar.update(100 - bar.n)
    return starts


def build(seed: int) -> tuple[AFNext, AFNextProcessor]:
    """A tiny model with random weights, and a processor whose tokenizer covers the demo's texts."""
    torch.manual_seed(seed)
    tiny = preset("tiny")
    tokenizer = make_tokenizer([*texts(), SYSTEM, SYSTEM, "system", "user", "assistant"] * 2, tiny.text.vocab_size)
    template = re.sub(r"You are Audio Flamingo-Next[^<]*", SYSTEM, DEFAULT_TEMPLATE.read_text("utf-8"))
    processor = AFNextProcessor(tokenizer, chat_template=template, max_positions=tiny.text.max_positions)
    config = replace(
        tiny,
        text=replace(tiny.text, vocab_size=tokenizer.get_vocab_size()),
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
    say: Callable[[str], None] = print,
) -> dict:
    """The whole demo; writes the run folder and returns what its results.json holds.

    Args:
        out: run folder: checkpoint, tokenizer, corpus/, log.jsonl, losses.png, results.json.
        seed: of weights and corpus.
        seconds: how long to train.
        steps: bound on the steps of each part.
        heldout: clips to evaluate on, of all kinds together.
        say: where lines of text go.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    say("Speaking words in two languages and many voices")
    with tqdm(total=1, bar_format=BAR) as bar:
        for split in ("train", "heldout"):
            bar.set_description_str(f"{split} voices")
            load_bank(split, on_step=lambda done, total: (setattr(bar, "total", total), bar.update(done - bar.n)))
    write_corpus(out / "corpus", 12, 12, seed)
    clips = list(Corpus(seed, "heldout", heldout))

    model, processor = build(seed)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    say(f"Training {size:.1f} M parameters for about {seconds:.0f} s")
    untrained = score(clips, answer(model.eval(), processor, clips))
    log = LogWriter(out / "log.jsonl")
    starts = train(Trainee(model), processor, seed, seconds, steps, log)
    log.close()
    series: dict[str, list[tuple[float, float]]] = {}
    for row in log.rows:
        for name, value in row.losses.items():
            series.setdefault(name, []).append((row.seconds, value))
    loss_curves(out / "losses.png", series, starts)
    model.save_pretrained(out)
    processor.save_pretrained(out)

    say(f"Answering {len(clips)} held-out questions")
    common = majority_answer(clips)
    results = {
        "trained": score(clips, answer(model, processor, clips)),
        "untrained": untrained,
        "majority answer": score(clips, [common[clip.kind] for clip in clips]),
    }
    say("\n" + table(results) + "\n")
    report = {
        "results": results,
        "seed": seed,
        "steps": {part.name: sum(row.stage == part.name for row in log.rows) for part in PARTS},
        "training_seconds": round(log.rows[-1].seconds, 1),
        "total_seconds": round(time.perf_counter() - began, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report
