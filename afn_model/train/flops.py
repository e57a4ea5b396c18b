"""Model FLOPs of a training step from the real lengths of a batch, and the peak rate of the device.

Causal attention counts half its square, the head counts supervised tokens only, the encoder counts valid frames only;
activations recomputed in the backward count once. MFU = FLOPs / (seconds · peak).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from afn_model.audio.frames import SAMPLE_RATE, conv_frames, token_frames
from afn_model.config import AudioConfig, ModelConfig, SpeechConfig, TextConfig
from afn_model.network.ctc import frames_heard

if TYPE_CHECKING:
    from afn_model.prompt.batch import Batch

WORK = ("tokens", "supervised", "audio_seconds", "flops")  # what ``step_work`` counts
TRAINS = ("encoder", "adaptor", "language_model", "lm_head", "lora", "adaptor_lora", "encoder_lora")

# Dense bf16 FLOP/s with float32 accumulation by device name; the first pattern that matches counts.
PEAKS = {
    r"GB300|B300": 2.5e15,
    r"GB200": 2.5e15,
    r"B200": 2.25e15,
    r"B100": 1.75e15,
    r"GH200|H200|H800": 989e12,
    r"H100.*PCIe": 756e12,
    r"H100.*NVL": 835e12,
    r"H100": 989e12,
    r"H20\b": 148e12,
    r"A100|A800": 312e12,
    r"A40\b": 150e12,
    r"A30\b": 165e12,
    r"A10\b": 125e12,
    r"L40S": 362e12,
    r"L40\b": 181e12,
    r"L4\b": 121e12,
    r"RTX 5090": 210e12,
    r"RTX 4090": 165e12,
    r"RTX 3090": 71e12,
}


def peak(device: torch.device | str) -> float | None:
    """Peak bf16 FLOP/s by the device's data sheet; None for a CPU or a GPU that is not in the table."""
    device = torch.device(device)
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """``peak`` by the name of the GPU, such as "NVIDIA H100 80GB HBM3"."""
    return next((value for pattern, value in PEAKS.items() if re.search(rf"\b(?:{pattern})", name)), None)


def language_model_linear(text: TextConfig) -> float:
    """Forward FLOPs per token of the language model's linear layers, without the head: 2 · parameters."""
    heads = text.width * text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    return 2.0 * text.layers * (heads + 3 * text.width * text.ffn)


def language_model_attention(text: TextConfig, length: int) -> float:
    """Forward FLOPs of causal attention in one sequence, all layers: 4 S² · heads · head_dim / 2."""
    return 2.0 * text.layers * text.heads * text.head_dim * length**2


def head(text: TextConfig) -> float:
    """Forward FLOPs per token of the vocabulary projection."""
    return 2.0 * text.width * text.vocab_size


def encoder_window(audio: AudioConfig, frames: int) -> dict[str, float]:
    """Forward FLOPs of one window by what they go to.

    Args:
        audio: the encoder.
        frames: of the window after the stem, at most 1500.

    Returns:
        ``first`` (the first convolution, whose input needs no gradient), ``linear`` (all other weights), ``attention``.
    """
    block = 4 * audio.width**2 + 2 * audio.width * audio.ffn
    return {
        "first": 2.0 * 3 * audio.n_mels * audio.width * 2 * frames,
        "linear": 2.0 * frames * (3 * audio.width**2 + audio.layers * block),
        "attention": 4.0 * audio.layers * audio.width * frames**2,
    }


def forward_flops(
    config: ModelConfig, lengths: Iterable[int], supervised: int, mel_lengths: Iterable[int]
) -> dict[str, float]:
    """Forward FLOPs of a batch by part.

    Args:
        config: the model.
        lengths: tokens of each sequence.
        supervised: tokens whose loss is computed.
        mel_lengths: valid mel frames of each audio window.

    Returns:
        Parts: encoder_first, encoder_linear, encoder_attention, adaptor_first, adaptor_second, linear, attention, head.
    """
    lengths, frames = list(lengths), [conv_frames(length) for length in mel_lengths]
    windows = [encoder_window(config.audio, c) for c in frames]
    audio_tokens = sum(token_frames(c) for c in frames)
    encoder = {f"encoder_{key}": sum(x[key] for x in windows) for key in ("first", "linear", "attention")}
    return encoder | {
        "adaptor_first": 2.0 * audio_tokens * config.audio.width * config.text.width,
        "adaptor_second": 2.0 * audio_tokens * config.text.width**2,
        "linear": sum(lengths) * language_model_linear(config.text),
        "attention": sum(language_model_attention(config.text, length) for length in lengths),
        "head": supervised * head(config.text),
    }


def costs(trains: Iterable[str], cached: bool = False) -> dict[str, float]:
    """The cost of each part of ``forward_flops`` in a step, in multiples of its forward.

    The forward is 1. Linear layers: 1 more where gradients flow through them, 1 more where their weights train.
    Attention: 2 more where gradients flow through it. They flow from the loss back to the first part that trains.

    Args:
        trains: submodules that train: encoder, adaptor, language_model, lm_head; "lora" lets gradients flow through the
            language model without training its weights (its own products are left out), "adaptor_lora" and
            "encoder_lora" through these too.
        cached: the frozen encoder's features are known already.
    """
    trains = set(trains)
    unknown = trains.difference(TRAINS)
    if unknown:
        raise ValueError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(TRAINS)}")
    encoder, adaptor = "encoder" in trains, "adaptor" in trains
    before_adaptor = encoder or "encoder_lora" in trains
    before_text = before_adaptor or adaptor or "adaptor_lora" in trains
    text = before_text or bool(trains & {"language_model", "lora"})
    return {
        "encoder_first": 1 + encoder - cached,
        "encoder_linear": 1 + before_adaptor + encoder - cached,
        "encoder_attention": 1 + 2 * before_adaptor - cached,
        "adaptor_first": 1 + before_adaptor + adaptor,
        "adaptor_second": 1 + before_text + adaptor,
        "linear": 1 + text + ("language_model" in trains),
        "attention": 1 + 2 * text,
        "head": 1 + text + ("lm_head" in trains),
    }


def batch_flops(
    config: ModelConfig | SpeechConfig,
    batch: Batch,
    trains: Iterable[str],
    *,
    all_tokens: bool = False,
    cached: bool = False,
) -> dict[str, float]:
    """FLOPs of one forward and backward of a packed batch by part: encoder, adaptor, linear, attention, head.

    Args:
        config: the model.
        batch: with labels.
        trains, cached: as ``costs`` takes them.
        all_tokens: count the head on every token, as code does that computes all logits.
    """
    if isinstance(config, SpeechConfig):
        return speech_batch_flops(config, batch, trains)
    lengths = batch.cu_seqlens.diff().tolist()
    wanted = sum(lengths) if all_tokens else batch.supervised
    forward = forward_flops(config, lengths, wanted, [] if batch.pcm is None else batch.mel_lengths.tolist())
    factors, flops = costs(trains, cached), dict.fromkeys(("encoder", "adaptor", "linear", "attention", "head"), 0.0)
    for part, value in forward.items():
        flops[part.partition("_")[0]] += value * factors[part]
    return flops


def speech_forward_flops(
    config: SpeechConfig, texts: list[int], heard: list[int], supervised: int, conv: list[int]
) -> dict[str, float]:
    """Forward FLOPs of a batch by part.

    Args:
        config: the model.
        texts, heard: tokens of each text, and frames that it attends to.
        supervised: tokens whose loss is computed.
        conv: frames of each window after the stem.

    Returns:
        Parts: encoder_first, encoder_linear, encoder_attention, linear (of the decoder), attention, head.
    """
    windows = [encoder_window(config.audio, frames) for frames in conv]
    width, layers = config.width, config.layers
    token = 2.0 * layers * (6 * width**2 + 2 * width * config.ffn)
    frame = 2.0 * layers * 2 * config.audio.width * width
    own = 2.0 * layers * width * sum(count**2 for count in texts)
    cross = 4.0 * layers * width * sum(count * frames for count, frames in zip(texts, heard, strict=True))
    encoder = {f"encoder_{key}": sum(one[key] for one in windows) for key in ("first", "linear", "attention")}
    return encoder | {
        "linear": sum(texts) * token + sum(heard) * frame,
        "attention": own + cross,
        "head": supervised * 2.0 * width * config.vocab_size,
    }


def speech_batch_flops(config: SpeechConfig, batch: Batch, trains: Iterable[str]) -> dict[str, float]:
    """FLOPs of one forward and backward of a packed batch by part: encoder, linear, attention, head.

    Args:
        config: the model.
        batch: with labels.
        trains: submodules that train, encoder and decoder.
    """
    conv = [] if batch.pcm is None else [conv_frames(length) for length in batch.mel_lengths.tolist()]
    is_audio = F.pad((batch.input_ids == config.audio_token_id).cumsum(0), (1, 0))[batch.cu_seqlens.long()]
    texts = (batch.cu_seqlens.diff() - is_audio.diff()).tolist()
    forward = speech_forward_flops(config, texts, frames_heard(batch, config), batch.supervised, conv)
    encoder, decoder = "encoder" in set(trains), "decoder" in set(trains)
    factors = {
        "encoder_first": 1 + encoder,
        "encoder_linear": 1 + 2 * encoder,
        "encoder_attention": 1 + 2 * encoder,
        "linear": 1 + (encoder or decoder) + decoder,
        "attention": 1 + 2 * (encoder or decoder),
        "head": 1 + (encoder or decoder) + decoder,
    }
    found = dict.fromkeys(("encoder", "linear", "attention", "head"), 0.0)
    for part, value in forward.items():
        found[part.partition("_")[0]] += value * factors[part]
    return found


def ctc_flops(config: SpeechConfig, frames: int, trains: Iterable[str]) -> float:
    """FLOPs of one forward and backward of a CTC head that trains.

    Args:
        config: the model.
        frames: that have targets.
        trains: submodules that train.
    """
    return frames * 2.0 * config.audio.width * (config.vocab_size + 1) * (2 + ("encoder" in set(trains)))


def step_work(
    config: ModelConfig | SpeechConfig, batches: Iterable[Batch], trains: Iterable[str], *, cached: bool = False
) -> dict[str, float]:
    """What ``Meter.step`` counts, for the batches of one rank: tokens, supervised, audio_seconds and flops."""
    trains, work = tuple(trains), dict.fromkeys(WORK, 0.0)
    for batch in batches:
        work["tokens"] += len(batch.input_ids)
        work["supervised"] += batch.supervised
        work["audio_seconds"] += float(batch.samples.sum()) / SAMPLE_RATE
        work["flops"] += sum(batch_flops(config, batch, trains, cached=cached).values())
    return work
