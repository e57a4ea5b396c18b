"""Samples as the bytes of a file, for those who take files."""

from __future__ import annotations

import io
import wave

import numpy as np
from torch import Tensor

from afn_model.audio.frames import SAMPLE_RATE


def wav(pcm: Tensor | np.ndarray) -> bytes:
    """The bytes of a wav file of samples [n], int16, 16 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(np.asarray(pcm).astype("<i2").tobytes())
    return file.getvalue()


def flac(pcm: Tensor | np.ndarray) -> bytes:
    """The bytes of a flac file of samples [n], int16, 16 kHz."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.asarray(pcm), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
