"""A recording in a conversation, whatever it comes from: an array, a file, a member of a tar, a cell of a table."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.decode import array_to_pcm, audio_seconds, load_audio
from afn_model.audio.digests import DecodedRecording
from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from afn_model.audio.shards import is_member, read_member
from afn_model.audio.source import is_pipe, read_source
from afn_model.audio.tables import is_cell, read_cell
from afn_model.checks import is_number, is_whole
from afn_model.ranges import BLOCK, FIRST, RemoteBytes
from afn_model.storage import StorageError, is_url

_SOURCES = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Tensor, DecodedRecording)
_CONTENT = ("array", "bytes", "path", "audio")  # keys of a dict: the samples, or the file


@dataclass(frozen=True, eq=False)
class Audio:
    """A recording, or a part of it, in a conversation. A recording mentioned twice is the same object.

    Args:
        source: path, bytes, open file, or a 1-D array, tensor or list of samples; ``(samples, rate)`` or ``{"array",
            "sampling_rate"}``, ``{"bytes"}`` and ``{"path"}``, as data sets have them; a decoder with
            ``get_all_samples``; a ``DecodedRecording``. What it holds is kept, not the dict.
        sampling_rate: whole Hz, for an array; 16,000 if None.
        start, end: seconds.

    Raises:
        ValueError: another kind of source, or what should be a number is none.
    """

    source: Any
    sampling_rate: int | None = None
    start: float | None = None
    end: float | None = None

    def __post_init__(self):
        source, found = _unpacked(self.source)
        if not isinstance(source, _SOURCES) and not hasattr(source, "read"):
            raise ValueError(f"a recording must be a path, bytes, an open file or an array, got {source!r:.80}")
        object.__setattr__(self, "source", source)
        for name, value in found.items():
            if value is not None and getattr(self, name) is None:
                object.__setattr__(self, name, value)
        where = f"{self.source}: " if isinstance(self.source, (str, os.PathLike)) else ""
        for name in ("sampling_rate", "start", "end"):
            value = getattr(self, name)
            if value is not None and not is_number(value):
                raise ValueError(f"{where}{name} of a recording must be a number, got {value!r:.80}")
        rate = self.sampling_rate
        if rate is not None and not rate > 0:
            raise ValueError(f"{where}sampling_rate of a recording must be above 0, got {rate}")
        if rate is not None and not is_whole(rate):
            if rate != rate // 1:  # NaN, infinity, a part of a hertz
                raise ValueError(f"{where}sampling_rate of a recording must be whole, got {rate}")
            object.__setattr__(self, "sampling_rate", int(rate))


def _unpacked(source) -> tuple[Any, dict[str, Any]]:
    """(what holds the samples or the file, what else is said of it)."""
    if isinstance(source, dict):
        content = next((source[key] for key in _CONTENT if source.get(key) is not None), None)
        if content is None:
            raise ValueError(f"a recording given as a dict needs 'array', 'bytes' or 'path', got {sorted(source)}")
        inner, found = _unpacked(content)
        return inner, found | {key: source[key] for key in ("sampling_rate", "start", "end") if key in source}
    if hasattr(source, "get_all_samples"):
        decoded = source.get_all_samples()
        return decoded.data.float().mean(0), {"sampling_rate": decoded.sample_rate}
    if isinstance(source, tuple) and len(source) == 2 and is_number(source[1]) and not is_number(source[0]):
        return _unpacked(source[0])[0], {"sampling_rate": source[1]}
    if isinstance(source, (list, tuple)) and source and all(is_number(sample) for sample in source):
        return np.asarray(source), {}
    return source, {}


def load(
    audio: Audio,
    *,
    strict: bool = False,
    max_seconds: float = 1800,
    dtype: torch.dtype = torch.float32,
    to: int = SAMPLE_RATE,
) -> Tensor:
    """Samples [n] at ``to`` Hz of a recording, whatever it comes from; options and errors as of ``load_audio``."""
    options = {"start": audio.start, "end": audio.end, "strict": strict, "max_seconds": max_seconds, "dtype": dtype}
    options |= {"to": to}
    if isinstance(audio.source, DecodedRecording):
        pcm, whole = audio.source.pcm, audio.start is None and audio.end is None
        whole = whole and to == SAMPLE_RATE
        if whole and pcm.dtype == dtype and MIN_SAMPLES <= len(pcm) <= max_seconds * SAMPLE_RATE:
            return pcm
        return array_to_pcm(pcm, SAMPLE_RATE, **options)
    if isinstance(audio.source, (np.ndarray, Tensor)):
        rate = SAMPLE_RATE if audio.sampling_rate is None else audio.sampling_rate
        return array_to_pcm(audio.source, rate, **options)
    first = BLOCK if audio.start else FIRST  # of a part, the rest may be far away
    if is_inside(audio.source):
        return load_audio(_read_inside(audio.source, first), name=audio.source, **options)
    return load_audio(RemoteBytes(audio.source, first=first) if is_url(audio.source) else audio.source, **options)


def is_inside(source) -> bool:
    """Whether a recording lies in another file: a member of a tar file, a cell of a Parquet or Arrow file."""
    return is_member(source) or is_cell(source)


def read_whole(source: str) -> bytes:
    """All bytes of the file that a recording is, wherever it lies.

    Raises:
        ValueError: no such file, no access, nothing in it.
    """
    found = _read_inside(source, FIRST) if is_inside(source) else source
    return bytes(read_source(found, source).data)


def _read_inside(source: str, first: int) -> bytes | RemoteBytes:
    return read_member(source, first) if is_member(source) else read_cell(source)


def measured_seconds(audio: Audio) -> float:
    """Seconds of a recording in a file, a tar shard or a table, without decoding it.

    Raises:
        ValueError: one line with its name: no such file, not audio, no length, a pipe, or a start outside of it.
    """
    if is_pipe(audio.source):
        raise ValueError(f"{audio.source}: how long it is will be known when it has been read")
    if is_inside(audio.source):
        source = read_source(_read_inside(audio.source, BLOCK), audio.source)
    elif is_url(audio.source):
        source = read_source(RemoteBytes(audio.source, first=BLOCK))
    else:
        source = read_source(audio.source)
    try:
        seconds, start = audio_seconds(source), audio.start or 0.0
    except StorageError:
        raise
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    if start >= seconds:
        said = f"start {start} s is outside the recording of {seconds:.3f} s" if seconds else "the recording is empty"
        raise ValueError(f"{source.name}: {said}")
    return min(seconds, math.inf if audio.end is None else audio.end) - start
