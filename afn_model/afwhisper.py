"""The audio encoder with its own text decoder, as it is pre-trained: checkpoints and texts."""

from __future__ import annotations

from pathlib import Path

import torch

from afn_model.network.speech_network import SpeechNetwork
from afn_model.weights.speech import load_speech, save_speech


class AFWhisper(SpeechNetwork):
    """AF-Whisper, or Whisper. ``AFWhisper(config)`` has random weights; ``from_pretrained`` reads a folder."""

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> AFWhisper:
        """Reads a folder of transformers' Whisper, or one of ``save_pretrained``; see ``weights.speech``."""
        return load_speech(cls, folder, dtype=dtype, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder, which transformers reads as Whisper where the shape is one of Whisper's."""
        save_speech(self, folder)
