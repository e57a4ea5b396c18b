"""Model FLOPs of a voice's parts and of its training steps, as ``afn_model.train.flops`` counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from afn_model.config import TextConfig
from afn_model.speech.config import CodecConfig
from afn_model.speech.discriminators import Discriminators
from afn_model.train.flops import language_model_attention, language_model_linear

# Forwards of the discriminators that a step takes as long as: two with their backward, one of the original, and one of
# the sound whose backward has no gradients of weights.
DISCRIMINATED = 2 * 3 + 1 + 2


def stage_positions(config: CodecConfig) -> list[float]:
    """Positions a second of each of the codec's stages, the finest first, and of its tokens."""
    rates = [config.sample_rate / config.hop]
    for stride in config.strides:
        rates.append(rates[-1] / stride)
    return rates


def codec_way_flops(config: CodecConfig) -> float:
    """Forward FLOPs of a second of sound through encoder or decoder, which mirror each other."""
    rates, total = stage_positions(config), 0.0
    ends = (*config.widths[1:], config.latent)
    for rate, after, width, end, stride in zip(rates, rates[1:], config.widths, ends, config.strides, strict=False):
        total += rate * config.blocks * (16.0 * width**2 + 2 * config.kernel * width)
        total += after * 2.0 * width * stride * end
    return total + rates[0] * 2.0 * (config.window + 2) * config.widths[0]


def quantizer_flops(config: CodecConfig) -> float:
    """FLOPs of a frame's search through all levels."""
    return 2.0 * config.levels * config.codes * config.latent


def discriminated(rate: int, options: Mapping[str, Any]) -> tuple[float, int, int]:
    """(FLOPs of discriminators for a second of sound, values of their layers, parameters), by PyTorch's count.

    Args:
        rate: of the sound, Hz.
        options: of ``Discriminators``.
    """
    return _discriminated(
        rate, tuple((name, tuple(x) if isinstance(x, Sequence) else x) for name, x in options.items())
    )


@lru_cache(maxsize=8)
def _discriminated(rate: int, options: tuple[tuple[str, Any], ...]) -> tuple[float, int, int]:
    with torch.device("meta"):
        judges, pcm = Discriminators(**dict(options)), torch.empty(1, rate)
    with FlopCounterMode(display=False) as counted:
        layers = judges(pcm)
    values = sum(x.numel() for one in layers for x in one)
    return counted.get_total_flops(), values, sum(parameter.numel() for parameter in judges.parameters())


def coding_flops(config: CodecConfig) -> float:
    """Of a second of sound to codes."""
    return codec_way_flops(config) + config.frame_rate * quantizer_flops(config)


def codec_flops(config: CodecConfig, seconds: float, discriminators: Mapping[str, Any] | None) -> float:
    """Of a step of the codec on so many seconds; of its discriminators as well, where they count."""
    each = 3 * 2 * codec_way_flops(config) + config.frame_rate * quantizer_flops(config)  # encoder and decoder
    if discriminators is not None:
        each += DISCRIMINATED * discriminated(config.sample_rate, discriminators)[0]
    return seconds * each


def talker_flops(
    text: TextConfig, codec: CodecConfig, lengths: Sequence[int], *, coded: int, filled: int, head: int
) -> float:
    """Of a step of the talker: decoder and mixture forward, twice that backward, and the coding of what it hears.

    Args:
        text: the talker's decoder.
        codec: the codec.
        lengths: positions of each sample: prompt, text and frames.
        coded: frames that the codec makes codes of, prompts included.
        filled: frames times draws, of which the mixture's head sees each.
        head: the head's parameters.
    """
    forward = sum(length * language_model_linear(text) + language_model_attention(text, length) for length in lengths)
    return 3 * (forward + 2.0 * head * filled) + coded / codec.frame_rate * coding_flops(codec)
