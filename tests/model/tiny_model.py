"""A model folder with random weights, large enough that answers depend on every part of the prompt, and recordings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from afn_model import AFNext, AFNextProcessor
from afn_model.config import AudioConfig, RoteConfig
from afn_model.demo import build

STEPS = 12  # tokens an answer may have where a test does not need more


def tiny(seed: int = 0, rote: RoteConfig | None = None) -> tuple[AFNext, AFNextProcessor]:
    """The demo's model and processor, smaller and with weights that make the output follow the input."""
    like, processor = build(seed)
    text = replace(like.config.text, layers=2)
    config = replace(like.config, audio=AudioConfig(width=64, layers=2, heads=2, ffn=128), text=text)
    config = replace(config, rote=rote or config.rote, repetition_penalty=1.2)
    torch.manual_seed(seed)
    model = AFNext(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed_positions" not in name:
                parameter.mul_(6)
    return model, processor


def save_tiny(folder: Path, seed: int = 0) -> Path:
    model, processor = tiny(seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def noise(seconds: float, seed: int = 0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """[n] or [n, channels] samples of a random melody in noise, different for every seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    melody = np.sin(2 * np.pi * np.cumsum(np.repeat(rng.uniform(100, 3000, 64), -(-len(t) // 64))[: len(t)]) / rate)
    pcm = 0.3 * melody + 0.05 * rng.standard_normal(len(t))
    return pcm if channels == 1 else np.stack([pcm] * channels, axis=1)


def record(path: Path, seconds: float, seed: int = 0, rate: int = 16_000, channels: int = 1) -> str:
    soundfile.write(path, noise(seconds, seed, rate, channels), rate)
    return str(path)
