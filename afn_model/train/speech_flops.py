"""Model FLOPs of a training step of the speech decoder, counted as ``train.flops`` counts those of the whole model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from afn_model.audio.frames import conv_frames, token_frames
from afn_model.config import SpeechConfig
from afn_model.train.flops import encoder_window

if TYPE_CHECKING:
    from afn_model.prompt.batch import Batch


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
    placeholders = is_audio.diff()
    texts = (batch.cu_seqlens.diff() - placeholders).tolist()
    ends = torch.tensor([0, *(token_frames(frames) for frames in conv)]).cumsum(0)
    windows = torch.searchsorted(ends, is_audio.long())
    frames = torch.tensor([0, *conv]).cumsum(0)
    heard = (placeholders if config.pooled else frames[windows].diff()).tolist()
    forward = speech_forward_flops(config, texts, heard, batch.supervised, conv)
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
