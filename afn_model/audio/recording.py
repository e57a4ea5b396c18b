"""A recording in a conversation, whatever it comes from: an array, a file, or a member of a tar shard."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.container import is_mp3, walk_mp3, with_frame_count
from afn_model.audio.decode import array_to_pcm, load_audio
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.shards import is_member, read_member
from afn_model.checks import is_number

_SOURCES = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class Audio:
    """A recording, or a part of it, in a conversation. A recording mentioned twice is the same object.

    Args:
        source: path, bytes, open file, or a 1-D array or tensor of samples.
        sampling_rate: Hz, for an array; 16,000 if None.
        start, end: seconds.

    Raises:
        ValueError: another kind of source, or what should be a number is none.
    """

    source: Any
    sampling_rate: int | None = None
    start: float | None = None
    end: float | None = None

    def __post_init__(self):
        if not isinstance(self.source, _SOURCES) and not hasattr(self.source, "read"):
            raise ValueError(f"a recording must be a path, bytes, an open file or an array, got {self.source!r:.80}")
        where = f"{self.source}: " if isinstance(self.source, (str, os.PathLike)) else ""
        for name in ("sampling_rate", "start", "end"):
            value = getattr(self, name)
            if value is not None and not is_number(value):
                raise ValueError(f"{where}{name} of a recording must be a number, got {value!r:.80}")
        if self.sampling_rate is not None and not self.sampling_rate > 0:
            raise ValueError(f"{where}sampling_rate of a recording must be above 0, got {self.sampling_rate}")


def load(
    audio: Audio, *, strict: bool = False, max_seconds: float = 1800, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Samples [n] at 16 kHz of a recording, whatever it comes from; options and errors as of ``load_audio``."""
    options = {"start": audio.start, "end": audio.end, "strict": strict, "max_seconds": max_seconds, "dtype": dtype}
    if isinstance(audio.source, (np.ndarray, Tensor)):
        rate = SAMPLE_RATE if audio.sampling_rate is None else audio.sampling_rate
        return array_to_pcm(audio.source, rate, **options)
    if is_member(audio.source):
        return load_audio(read_member(audio.source), name=audio.source, **options)
    return load_audio(audio.source, **options)


def measured_seconds(audio: Audio) -> float:
    """Seconds of a recording in a file or a tar shard, by its header.

    Raises:
        ValueError: one line with its name: no such file, not audio, no length, or a start outside of it.
    """
    import soundfile

    try:
        data = read_member(audio.source) if is_member(audio.source) else None
        if audio.source.lower().endswith(".mp3"):
            data = Path(audio.source).read_bytes() if data is None else data
            # libsndfile guesses the length of an mp3 that does not count its frames.
            if is_mp3(data) and not (walk := walk_mp3(data)).counted:
                data = with_frame_count(data, walk)
        header = soundfile.info(audio.source if data is None else io.BytesIO(data))
    except (OSError, ValueError, soundfile.SoundFileError) as error:
        missing = not is_member(audio.source) and not os.path.isfile(audio.source)
        reason = "no such file" if missing else str(error).removeprefix(f"{audio.source}: ")
        raise ValueError(f"{audio.source}: {reason}") from None
    if header.frames >= 1 << 62:
        raise ValueError(f"{audio.source}: its header does not say how long it is")
    seconds, start = header.frames / header.samplerate, audio.start or 0.0
    if start >= seconds:
        raise ValueError(f"{audio.source}: start {start} s is outside the recording of {seconds:.3f} s")
    return min(seconds, math.inf if audio.end is None else audio.end) - start
