"""A small AF-Whisper from nothing: utterances in four languages, an encoder with its decoder, and what it reaches.

``afn train --curriculum afwhisper-tiny`` records the world, makes the model that the first stage starts from, trains
and writes a report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from afn_model.afwhisper import AFWhisper
from afn_model.bootstrap.run_results import RunResults
from afn_model.bootstrap.speech_report import markdown
from afn_model.bootstrap.speech_scores import evaluate, read
from afn_model.bootstrap.speech_start import start_encoder
from afn_model.config import AudioConfig, SpeechConfig
from afn_model.files import write_text
from afn_model.host import machine
from afn_model.infer.word_times import save_heads
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.speech_task import SPEAKER, add_task_tokens
from afn_model.prompt.tokenizer import SPECIAL_TOKENS
from afn_model.train.curriculum import Curriculum, Stage, read_curriculum
from afn_model.train.run_layout import RunLayout, read_layout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from afn_model.world.build import write_world
from afn_model.world.sounds import SOUNDS
from afn_model.world.vocabulary import VOCABULARY

# As few tokens as the trainer's reading of answers allows; a task's text has no words of its own.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' + message['content'] + '<|im_end|>' -}}"
    "{%- else -%}{{- '<|startoftranscript|>' + message['content'].replace('\\n', '') -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
AUDIO = AudioConfig(width=128, layers=3, heads=4, ffn=512)
TRAIN = {
    "single": 3000,
    "phrases": 7000,
    "overlaps": 4500,
    "target": 4500,
    "interpreted": 1500,
    "captions": 800,
}
START_STEPS = 600
HELDOUT = 300  # records of a task that every stage is asked
DECODER: dict[str, Any] = {"width": 128, "layers": 2, "heads": 4, "ffn": 512, "max_positions": 64}


def word_tokenizer() -> Tokenizer:
    """Every word of the vocabulary is one token, wherever it stands; other texts are spelt in bytes."""
    words = [word for own in VOCABULARY.values() for word in own]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r" ?\S+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(True, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join([*words, *SOUNDS, "assistant"]), "\n"], trainer)
    tokenizer.add_tokens([AddedToken(SPEAKER, lstrip=True, special=False, normalized=False)])
    add_task_tokens(tokenizer, VOCABULARY, times=False)
    return tokenizer


def untrained(seed: int) -> tuple[AFWhisper, AFNextProcessor]:
    """The model with random weights, and its processor."""
    processor = AFNextProcessor(word_tokenizer(), chat_template=TEMPLATE, boundaries=False)
    torch.manual_seed(seed)
    config = SpeechConfig(
        AUDIO,
        vocab_size=processor.tokenizer.get_vocab_size(),
        pooled=True,
        audio_token_id=processor.sound_id,
        stop_token_ids=(processor.token_id("<|im_end|>"),),
        **DECODER,
    )
    model = AFWhisper(config)
    with torch.no_grad():
        for name, weight in model.decoder.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(std=weight.shape[1] ** -0.5)
    return model, processor


def scaled(curriculum: Curriculum, scale: float, seed: int) -> Curriculum:
    """Stages of so many of their steps; an evaluation each where they are shorter than what lies between two."""
    stages = tuple(replace(stage, steps=max(2, round(scale * (stage.steps or 0)))) for stage in curriculum.stages)
    return replace(curriculum, stages=stages, seed=seed)


def world(folder: Path, seed: int, scale: float) -> None:
    """Records the corpora, once."""
    if (folder / "done").exists():
        return
    sizes = {axis: max(8, round(scale * count)) for axis, count in TRAIN.items()}
    asked = {axis: max(4, round(min(1.0, 4 * scale) * HELDOUT)) for axis in TRAIN}
    with tqdm(total=1, desc="Recording utterances") as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        processes = 2 if scale > 0.05 else 1
        write_world(folder, train=sizes, heldout=asked, seed=seed, processes=processes, on_step=on_step)
    (folder / "done").touch()


def base(folder: Path, world: Path, seed: int, scale: float) -> None:
    """The model that the first stage starts from: its encoder has had a short start, its decoder none."""
    if (folder / "config.json").exists():
        return
    model, processor = untrained(seed)
    labels = list(dict.fromkeys(word for own in VOCABULARY.values() for word in own))
    steps = max(2, round(scale * START_STEPS))
    with tqdm(total=steps) as bar:

        def on_step(done: int, loss: float) -> None:
            bar.set_description_str(f"Encoder {loss:.2f}", refresh=False)
            bar.update(done - bar.n)

        records = read(world / "train/phrases.jsonl")
        start_encoder(model, processor, records, world / "train", labels, steps=steps, seed=seed, on_step=on_step)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


@contextmanager
def one_thread() -> Iterator[None]:
    """Two are slower for products this small, beside processes that decode."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def run(
    out: Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    changes: Mapping[str, Any] | None = None,
    layout: RunLayout | None = None,
    options: Options | None = None,
) -> dict:
    """Everything from where it stands; returns what ``report.json`` in the folder holds.

    Args:
        out: the run's folder, with world/ and base/ beside the stages.
        seed: of world, weights and order.
        scale: of corpora and steps.
        changes: of the curriculum's fields, as of ``read_curriculum``.
        layout: that of one CPU by default.
        options: of the trainer.
    """
    run_results = RunResults(out, seed, scale)
    results, clock = run_results.found, run_results.clock
    curriculum = scaled(read_curriculum("afwhisper-tiny", out / "world", changes), scale, seed)
    results["starts"] += any(stage.name not in results["stages"] for stage in curriculum.stages)
    world(out / "world", seed, scale)
    clock("world")
    base(out / "base", out / "world", seed, scale)
    clock("base")

    def on_stage(stage: Stage, folder: Path) -> None:
        if stage.name not in results["stages"]:
            clock(stage.name)
            found = results["stages"][stage.name] = evaluate(folder, out / "world", tuple(TRAIN), HELDOUT)
            if heads := found["word_times"].get("heads"):
                save_heads(folder, heads)  # for afn transcribe --words
            results["machine"] = machine()
            clock("evaluation")
            write_text(out / "report.md", markdown(results))

    train(curriculum, out / "base", out, layout=layout or read_layout("cpu"), options=options, on_stage=on_stage)
    return results
