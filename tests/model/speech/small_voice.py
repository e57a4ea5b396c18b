"""A voice so small that it takes no time, with random weights: what it says are no words."""

from __future__ import annotations

import torch

from afn_model.config import TextConfig
from afn_model.speech.config import CodecConfig, TalkerConfig, VoiceConfig
from afn_model.speech.voice import AFVoice

RATE = 16_000


def small_voice(tokens: int = 512, seed: int = 0) -> AFVoice:
    """A voice for a vocabulary of ``tokens``; a frame has 256 samples."""
    torch.manual_seed(seed)
    codec = CodecConfig(sample_rate=RATE, window=64, hop=32, widths=(8,), strides=(8,), blocks=1, kernel=3, latent=8,
                        levels=2, codes=16)  # fmt: skip
    text = TextConfig(tokens, 16, 1, 2, 1, 32, rope_theta=1e4, max_positions=256)
    talker = TalkerConfig(text, head_width=16, components=4, iterations=2, prompt=8, longest=48, piece=12)
    return AFVoice(VoiceConfig(codec, talker)).eval()
