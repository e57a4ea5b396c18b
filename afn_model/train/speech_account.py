"""The memory of a GPU in a step of method asr: the encoder's frames, and a decoder that reads text and hears frames.

What is held, gathered and summed is counted as for the whole model. A decoder block has no MLP of its own, so that
recomputing "selective" does what "full" does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from afn_distributed.costs import SequenceLoad, sequence_load
from afn_model.config import ModelConfig, SpeechConfig
from afn_model.network.ctc import BUDGET
from afn_model.network.device_batch import AHEAD
from afn_model.speech.config import VoiceConfig
from afn_model.train.account import Account
from afn_model.train.curriculum import Stage
from afn_model.train.run_layout import RunLayout
from afn_model.train.voice_plan import VoiceAccount, voice_account

WINDOW_BYTES = 2 * 480_000  # of 30 s of PCM in 16 bits
NORM = 8  # bytes of a row's mean and deviation
CTC_WORKING = 5 * 4 * BUDGET  # bytes: logits in float32, those before, softmax and gradients, one chunk of them


class SpeechAccount(Account):
    """``Account`` of an encoder with a decoder of its own; ``rows`` are of text, which alone the decoder reads."""

    @property
    def mode(self) -> str:
        return "full" if self.layout.recompute == "selective" else self.layout.recompute

    @property
    def heard(self) -> np.ndarray:
        """[ranks] frames that the decoder hears."""
        return self.frames / (2 if self.text.pooled else 1)

    @property
    def ctc(self) -> bool:
        return bool(self.stage.asr.get("ctc"))

    @property
    def trains_decoder(self) -> bool:
        return self.keeps("decoder.fc1")

    def sequence_load(self) -> SequenceLoad:
        text = self.text
        return sequence_load(self.micro.texts, 1, 1, text.heads, text.heads, text.head_dim, self.size)

    def layer(self, mode: str) -> np.ndarray:
        if mode == "full":
            return super().layer(mode)
        text, e, inputs = self.text, self.size, int(self.trains_decoder)
        # Of each of the three norms the sum before it, and what it gives where weights read that for their gradient;
        # q, k, v and the output of self-attention, q and the output of cross-attention; before and after the GELU.
        row = e * (text.width * (3 * (1 + inputs) + 6) + text.ffn * (1 + inputs)) + 3 * NORM + 2 * 4 * text.heads
        return self.rows * row + self.heard * e * 2 * text.width

    def encoder(self) -> np.ndarray:
        """[ranks] bytes that the encoder keeps, recordings on their way and the frames that are heard included."""
        recordings = AHEAD * WINDOW_BYTES * len(self.micro.frames)
        frames = self.trains_decoder or self.mode == "full"
        return self.stem_and_blocks() + recordings + self.heard * self.size * self.config.audio.width * frames

    def head(self) -> np.ndarray:
        # Of CTC scores and their logarithms for each token of a text, blank and rest, and two sums for each token.
        scores = 4 * (4 * max(self.micro.texts, default=0) + 5)
        return super().head() + self.heard * scores * self.ctc

    def working(self) -> np.ndarray:
        return np.maximum(super().working(), CTC_WORKING * self.ctc)

    def inner(self) -> np.ndarray:
        text, e = self.text, self.size
        again = self.layer("none") if self.mode == "full" else 0 * self.rows
        row, frame = self.rows * e, self.heard * e
        mlp = row * (2 * text.ffn + 2 * text.width)
        # Gradients of keys and values, and of the frames: of both, and their sum over the layers.
        cross = frame * (2 * text.width + 3 * self.config.audio.width * self.units.trains_encoder)
        return again + np.maximum(mlp, cross + row * 5 * text.width)


def account_of(
    config: ModelConfig | SpeechConfig | VoiceConfig,
    stage: Stage,
    layout: RunLayout,
    ranks: int,
    *given: Any,
    **options: Any,
) -> Account | VoiceAccount:
    """The account of a stage by the kind of its model; other arguments are those of ``Account``."""
    if isinstance(config, VoiceConfig):
        return voice_account(config, stage, layout, ranks)
    return (SpeechAccount if isinstance(config, SpeechConfig) else Account)(
        config, stage, layout, ranks, *given, **options
    )
