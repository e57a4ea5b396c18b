"""A tiny voice with random weights, recordings of its two tasks, and a run of a stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from afn_distributed.process import Process
from afn_model.config import TextConfig
from afn_model.data import index
from afn_model.data.records import check
from afn_model.speech.config import CodecConfig, TalkerConfig, VoiceConfig
from afn_model.speech.voice import AFVoice
from afn_model.train.curriculum import Curriculum, made_curriculum
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from tests.tiny import processor, record

RATE, FRAME = 8_000, 64
CODEC = {
    "crop": 0.1,
    "loss": {"windows": [64, 32], "bands": [8, 5]},
    "discriminators": {"periods": [2], "windows": [64], "width": 2},
}
STAGES: dict[str, dict[str, Any]] = {
    "codec": {"codec": CODEC},
    "talker": {"talker": {"prompt_seconds": 0.1, "noise": 0.1, "dropout": 0.1, "pass_tokens": 200}},
}


def save_voice(folder: Path, talker: bool = True) -> Path:
    """A voice whose audio frame is 8 ms, and the processor of tests/tiny."""
    of = processor()
    text = TextConfig(of.tokenizer.get_vocab_size(), 16, 1, 2, kv_heads=1, ffn=32, max_positions=2048)
    codec = CodecConfig(RATE, 16, 4, (8,), (16,), 1, 3, latent=8, levels=4, codes=8)
    torch.manual_seed(0)
    spoken = TalkerConfig(text, head_width=16, head_layers=2, components=4, iterations=2) if talker else None
    AFVoice(VoiceConfig(codec, spoken)).save_pretrained(folder)
    of.save_pretrained(folder)
    return folder


def one(name: str, *paths: str, said: str = "one two three") -> dict[str, Any]:
    """A record of what is said in the last of its recordings."""
    asked = "<sound>" * len(paths) + "What is said?"
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {"id": name, "audios": [{"path": path} for path in paths], "messages": messages}


def corpus(file: Path, records: Sequence[dict] | None = None) -> Path:
    """An indexed corpus; without records 9 recordings of 0.2 to 0.6 s, every third after a speaker prompt."""
    if records is None:
        for number in range(9):
            record(file.parent / f"{number}.wav", 0.2 + 0.05 * number, seed=number, rate=RATE)
        pairs = [([f"{(n + 1) % 9}.wav"] if n % 3 == 0 else []) + [f"{n}.wav"] for n in range(9)]
        records = [one(str(number), *paths) for number, paths in enumerate(pairs)]
    file.write_text("".join(json.dumps(found) + "\n" for found in records))
    index.build(file, check=check, measure=True)
    return file


def curriculum(folder: Path, method: str, **changes: Any) -> Curriculum:
    """One stage over ``voice.jsonl`` of a folder."""
    stage = {"method": method, "trains": method, "batch_prompts": 4, "steps": 4, "lr": 1e-3, "blend": {"voice": 1}}
    stage |= {"context": 1024, "epochs": 100, **STAGES[method], **changes}
    raw = {"datasets": {"voice": "voice.jsonl"}, "stages": {"one": stage}}
    return made_curriculum(raw, "voices", folder)


def go(plan: Curriculum, folder: Path, run: Path, process: Process | None = None, **layout: Any) -> list[dict]:
    """Trains from the voice of a folder; the rows of the log."""
    settings = RunLayout(**{"workers": 0, "log_every": 1, "checkpoint_every": 2, "keep": 9} | layout)
    train(plan, folder / "base", run, layout=settings, process=process, options=Options(show=False, tensorboard=False))
    return [json.loads(line) for line in (run / "one" / "log.jsonl").read_text().splitlines()]
