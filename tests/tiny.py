"""What tests are made of: a tiny tokenizer, processor, configuration, model folder, recordings and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer

from afn_model import AFNext, AFNextProcessor
from afn_model.bootstrap.tiny import build
from afn_model.config import AudioConfig, ModelConfig, RoteConfig, TextConfig
from afn_model.prompt.tokenizer import make_tokenizer

STEPS = 12  # tokens an answer may have where a test does not need more
# What tests ask and answer, so that it does not fall into bytes.
TEXTS = (
    "Transcribe the input speech.",
    "What is said, and when does the dog bark?",
    "What is said? A dog barks. One two three. Which is louder?",
    "A dog barks at 3.2 s.",
    "déjà vu 你好",
)


def tokenizer(texts: Sequence[str] = TEXTS, size: int = 400) -> Tokenizer:
    return make_tokenizer([*texts] * 4, size)


def processor(texts: Sequence[str] = TEXTS, size: int = 400, **options: Any) -> AFNextProcessor:
    """A processor without a model."""
    return AFNextProcessor(tokenizer(texts, size), **options)


def config(
    of: AFNextProcessor | None = None, *, width: int = 32, layers: int = 1, heads: int = 2, **changes: Any
) -> ModelConfig:
    """Encoder of one layer and language model of ``layers``, ``width`` wide, one KV head, a context of 512 tokens.

    Args:
        of: gives the vocabulary and the special tokens; without it, 300 tokens and the last is the placeholder.
        width, layers, heads: of the language model; the encoder's width and heads are the same.
        changes: of other fields of ``ModelConfig``.
    """
    size = 300 if of is None else of.tokenizer.get_vocab_size()
    fields = {
        "audio": AudioConfig(width=width, layers=1, heads=heads, ffn=2 * width),
        "text": TextConfig(size, width, layers, heads, kv_heads=1, ffn=2 * width, max_positions=512),
        "audio_token_id": 299,
    }
    if of is not None:
        fields |= {"audio_token_id": of.token_id("<sound>"), "stop_token_ids": tuple(of.stop_ids)}
    return ModelConfig(**fields | changes)


def tiny(seed: int = 0, rote: RoteConfig | None = None) -> tuple[AFNext, AFNextProcessor]:
    """The bootstrap's model and processor, smaller and with weights that make the output follow the input."""
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


def without_finish(said: str) -> str:
    """What is said on stderr without the lines about answers that ``--max-new-tokens`` cut off."""
    return "".join(line for line in said.splitlines(keepends=True) if "finish length" not in line)


def noise(seconds: float, seed: int = 0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """[n] or [n, channels] samples of a random melody in noise, different for every seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    melody = np.sin(2 * np.pi * np.cumsum(np.repeat(rng.uniform(100, 3000, 64), -(-len(t) // 64))[: len(t)]) / rate)
    pcm = 0.3 * melody + 0.05 * rng.standard_normal(len(t))
    return pcm if channels == 1 else np.stack([pcm] * channels, axis=1)


def record(path: Path, seconds: float, seed: int = 0, rate: int = 16_000, channels: int = 1) -> str:
    """Writes ``noise`` to a file, whose folder is made; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed, rate, channels), rate)
    return str(path)


def conversation(question: str, *audios: Any, answer: str | None = None) -> list[dict]:
    """A user's turn about recordings (arrays of 16 kHz, or paths), and what the assistant says."""
    parts = [{"type": "audio", "path" if isinstance(audio, str) else "audio": audio} for audio in audios]
    turns: list[dict] = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]
