"""An annotator of voices that measures: how high, how fast and how loud somebody speaks, in plain words.

    annotators:
      captioner: {call: "afn_model.curate.stand_ins.pitch:describe"}

It says what one voice does in what it is sent; two at once it takes for one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afn_model.audio.decode import load_audio
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.curate.requests import AnnotationRequest, parts_of

FRAME, HOP = 640, 160  # samples: 40 ms hold two periods of the lowest voice, every 10 ms
LOWEST, HIGHEST = 60.0, 400.0  # Hz
VOICED = 0.6  # of the autocorrelation, at least
NEARLY = 0.9  # of its highest peak: the first such peak is the period, and no multiple of it
LOUD_DB = 25.0  # below the loudest frame, where speech ends
MAN, WOMAN = 135.0, 145.0  # Hz: the world's men are below, its women above
SLOW, FAST = 3.9, 5.5  # syllables in a second of speech
QUIET, LOUD = -30.0, -15.0  # decibels of full scale


@dataclass(frozen=True)
class MeasuredVoice:
    """A voice: ``hertz`` is the median pitch of what is voiced, 0 where nothing is; ``rate`` is syllables in a second
    of speech; ``level`` decibels of full scale while it speaks."""

    hertz: float
    rate: float
    level: float


def describe(requests: Sequence[AnnotationRequest]) -> list[Any]:
    """A sentence on the voice in the recording of each request."""
    return [_described(one) for one in requests]


def measure(pcm: np.ndarray) -> MeasuredVoice:
    """What is measured of speech, samples [n] float32 at 16 kHz."""
    if len(pcm) < FRAME:
        return MeasuredVoice(0.0, 0.0, -np.inf)
    frames = np.lib.stride_tricks.sliding_window_view(pcm.astype(np.float64), FRAME)[::HOP]
    levels = 10 * np.log10((frames * frames).mean(1) + 1e-12)
    speaking = levels > levels.max() - LOUD_DB
    pitches = pitch(frames[speaking])
    voiced = pitches[pitches > 0]
    rate = syllables(levels, speaking) / (HOP / SAMPLE_RATE * speaking.sum())
    level = 10 * np.log10(np.mean(10 ** (levels[speaking] / 10)))
    return MeasuredVoice(float(np.median(voiced)) if len(voiced) else 0.0, float(rate), float(level))


def pitch(frames: np.ndarray) -> np.ndarray:
    """Hz of each frame [n, 640], 0 where it is not voiced: the first peak of its autocorrelation that is about as high
    as any, for the lags of 60 to 400 Hz."""
    frames = frames - frames.mean(1, keepdims=True)
    size = 2 * FRAME
    power = np.abs(np.fft.rfft(frames, size)) ** 2
    low, high = int(SAMPLE_RATE / HIGHEST), int(SAMPLE_RATE / LOWEST)
    found = np.fft.irfft(power, size)[:, : high + 2]
    found = found / np.maximum(found[:, :1], 1e-12) * (FRAME / (FRAME - np.arange(high + 2)))  # fewer samples overlap
    inner = found[:, low : high + 1]
    peaks = (inner >= found[:, low - 1 : high]) & (inner >= found[:, low + 1 : high + 2])
    heights = np.where(peaks, inner, 0.0)
    best = heights.max(1, keepdims=True)
    lags = low + np.argmax(heights >= np.maximum(NEARLY * best, 1e-9), 1)
    return np.where(best[:, 0] >= VOICED, SAMPLE_RATE / lags, 0.0)


def syllables(levels: np.ndarray, speaking: np.ndarray) -> int:
    """Peaks of the level, smoothed over 90 ms, that rise 2 dB from the dip before them: about one for a syllable."""
    window = np.hanning(11)[1:-1]
    smooth = np.convolve(np.pad(levels, 4, mode="edge"), window / window.sum(), mode="valid")
    count, lowest, highest, rising = 0, smooth[0] if len(smooth) else 0.0, -np.inf, True
    for level, heard in zip(smooth, speaking, strict=True):
        if rising:
            highest = max(highest, level) if heard else highest
            if level < highest - 2.0:
                count += highest > lowest + 2.0
                lowest, rising = level, False
        else:
            lowest = min(lowest, level)
            if level > lowest + 2.0:
                highest, rising = level, True
    return count + (rising and highest > lowest + 2.0)


def words(voice: MeasuredVoice) -> str:
    """A sentence: "A low voice speaks fast and quietly."."""
    height = "A whispering" if not voice.hertz else "A low" if voice.hertz < MAN else "A high"
    height = "A medium" if MAN <= voice.hertz < WOMAN else height
    pace = "slowly" if voice.rate < SLOW else "fast" if voice.rate > FAST else "at a moderate pace"
    level = "quietly" if voice.level < QUIET else "loudly" if voice.level > LOUD else "at a normal level"
    return f"{height} voice speaks {pace} and {level}."


def heard(request: AnnotationRequest) -> np.ndarray:
    """The samples of a request's only recording.

    Raises:
        ValueError: there is none, or several, or it cannot be decoded.
    """
    parts = [part["audio"] for message in request.messages for part in parts_of(message) if "audio" in part]
    if len(parts) != 1:
        raise ValueError(f"one recording is expected, got {len(parts)}")
    place = {"start": parts[0].get("start"), "end": parts[0].get("end")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_audio(parts[0]["path"], **place, max_seconds=86_400).numpy()


def _described(request: AnnotationRequest) -> Any:
    try:
        voice = measure(heard(request))
    except (ValueError, OSError) as error:
        return error
    return words(voice) if voice.level > -70 else "Nobody speaks here."
