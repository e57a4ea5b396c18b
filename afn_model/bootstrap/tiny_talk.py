"""A small voice from nothing: phrases in many voices, a codec, a talker with two of them, and what they reach.

``afn train --curriculum talk-tiny`` records the world, makes the voice that the first stage starts from, trains and
writes a report; with ``--set demo=FOLDER`` the model of ``afn demo`` answers with it, aloud. ``OUT/voice`` is what it
has made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from afn_model.bootstrap.run_results import RunResults
from afn_model.bootstrap.speech_scores import read
from afn_model.bootstrap.talk_report import keep, markdown, sounding
from afn_model.bootstrap.talk_scores import (
    CONSENT,
    Listener,
    SoundExample,
    answered_aloud,
    codec_scores,
    sounds_of,
    speed,
    talker_scores,
)
from afn_model.bootstrap.tiny import build
from afn_model.bootstrap.tiny_speech import one_thread, scaled
from afn_model.files import write_text
from afn_model.host import machine
from afn_model.prompt.processor import AFNextProcessor
from afn_model.speech.config import VoiceConfig, voice_preset
from afn_model.speech.speaker import speaker_prompt
from afn_model.speech.voice import AFVoice
from afn_model.train.curriculum import Stage, read_curriculum
from afn_model.train.run_layout import RunLayout, read_layout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from afn_model.world.speeches import write_speeches

CURRICULUM = "talk-tiny"
TRAIN = {"spoken": 6000, "voices": 4000}
HELDOUT = {"spoken": 200, "known": 100, "new": 100}
TIMED, ASKED = 20, 60  # texts that are said one by one; recordings that the demo's model is asked about
DEFAULT_VOICE = "woman"


def sizes(scale: float) -> tuple[dict[str, int], dict[str, int]]:
    """Records to train on and held-out ones of each axis, at a scale."""
    asked = min(1.0, 4 * scale)
    train = {axis: max(8, round(scale * count)) for axis, count in TRAIN.items()}
    return train, {axis: max(4, round(asked * count)) for axis, count in HELDOUT.items()}


def world(folder: Path, seed: int, scale: float) -> None:
    """Records the corpora, once."""
    if (folder / "done").exists():
        return
    training, heldout = sizes(scale)
    with tqdm(total=1, desc="Recording phrases") as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        processes = 2 if scale > 0.05 else 1
        write_speeches(folder, train=training, heldout=heldout, seed=seed, processes=processes, on_step=on_step)
    (folder / "done").touch()


def base(folder: Path, seed: int, demo: Path | None) -> None:
    """The voice that the first stage starts from, with random weights, and its processor: that of the demo's model,
    whose token ids the talker reads."""
    if (folder / "config.json").exists():
        return
    processor = AFNextProcessor.from_pretrained(demo) if demo else build(seed)[1]
    preset = voice_preset("tiny")
    assert preset.talker is not None
    text = replace(preset.talker.text, vocab_size=processor.tokenizer.get_vocab_size())
    torch.manual_seed(seed)
    voice = AFVoice(VoiceConfig(preset.codec, replace(preset.talker, text=text)))
    processor.save_pretrained(folder)
    voice.save_pretrained(folder)


def evaluate(
    stage: Stage, folder: Path, out: Path, heldout: Mapping[str, int], demo: Path | None
) -> tuple[dict[str, Any], list[SoundExample]]:
    """What a stage's model folder reaches: the codec after a stage of it, everything after one of the talker."""
    voice, listener = AFVoice.from_pretrained(folder), Listener()
    processor = AFNextProcessor.from_pretrained(folder)
    if stage.method == "codec":
        return codec_scores(voice.codec, out / "world", ("known", "new", "spoken"), max(heldout.values()), listener)
    default_voice(voice, out / "world")
    voice.save_pretrained(out / "voice")
    processor.save_pretrained(out / "voice")
    tokenizer, most = processor.tokenizer, heldout["spoken"]
    scores, shown = talker_scores(voice, tokenizer, out / "world", most, listener)
    texts = [one["truth"]["answer"] for one in read(out / "world/heldout/spoken.jsonl", TIMED)]
    scores["speed"] = speed(voice, tokenizer, texts)
    if demo:
        scores["aloud"], answers = answered_aloud(demo, voice, min(ASKED, most), listener)
        shown += answers
    return scores, shown


def default_voice(voice: AFVoice, world: Path) -> None:
    """Sets the codes of a training prompt of ``DEFAULT_VOICE`` as the voice that speaks when none is asked for."""
    rate, prompts = voice.config.codec.sample_rate, read(world / "train/prompts.jsonl")
    first = next(one for one in prompts if one["truth"]["voice"] == DEFAULT_VOICE)
    (pcm,) = sounds_of(first, world / "train", rate)
    voice.default_voice = speaker_prompt(voice.codec, pcm, rate, consent=CONSENT).codes


def checked(demo: Path | None) -> Path | None:
    """The demo's folder; ValueError where it has no model or none of its recordings."""
    if demo and not ((demo / "config.json").is_file() and (demo / "corpus" / "heldout").is_dir()):
        raise ValueError(f"{demo}: no model of afn demo with its recordings; make demo writes one")
    return demo


@one_thread()
def run(
    out: Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    demo: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    layout: RunLayout | None = None,
    options: Options | None = None,
) -> dict:
    """Everything from where it stands; returns what ``report.json`` in the folder holds.

    Args:
        out: the run's folder, with world/, base/, voice/ and sounds/ beside the stages.
        seed: of world, weights and order.
        scale: of corpora and steps.
        demo: a folder of ``afn demo``, whose model answers with the voice; without one nothing is answered.
        changes: of the curriculum's fields, as of ``read_curriculum``.
        layout: that of one CPU by default.
        options: of the trainer.

    Raises:
        ValueError: another seed or scale than the folder's, or a demo without a model.
    """
    demo = checked(demo)
    run_results = RunResults(out, seed, scale, shown=[])
    results, clock = run_results.found, run_results.clock
    curriculum = scaled(read_curriculum(CURRICULUM, out / "world", changes), scale, seed)
    results["starts"] += any(stage.name not in results["stages"] for stage in curriculum.stages)
    world(out / "world", seed, scale)
    clock("world")
    base(out / "base", seed, demo)
    clock("base")

    def on_stage(stage: Stage, folder: Path) -> None:
        if stage.name in results["stages"]:
            return
        clock(stage.name)
        found, shown = evaluate(stage, folder, out, sizes(scale)[1], demo)
        results["shown"] += keep(shown, out / "sounds", voice_preset("tiny").codec.sample_rate)
        results["stages"][stage.name] = {"method": stage.method} | found
        results["machine"] = machine()
        clock("evaluation")
        write_text(out / "report.md", markdown(results))
        write_text(out / "sounds.md", sounding(results))

    train(curriculum, out / "base", out, layout=layout or read_layout("cpu"), options=options, on_stage=on_stage)
    return results
