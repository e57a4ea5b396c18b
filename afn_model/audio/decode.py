"""From a file to 30 s windows of 16 kHz mono samples, and how many frames and tokens they make.

pcm = load_audio("talk.mp3", start=60.0, end=90.0)     # [n] float32
windows, samples = split_windows(pcm)                  # [W, T], [W]
audio_tokens(len(pcm))                                 # tokens the language model will see
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.container import Structure, inspect
from afn_model.audio.ffmpeg import GAPS, AudioFile, PcmBlock, mix_down
from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from afn_model.audio.libsndfile import SoundFileAudio
from afn_model.audio.resample import resample
from afn_model.audio.source import AudioSource, read_source
from afn_model.ranges import RemoteBytes
from afn_model.storage import StorageError

MIN_RATE, MAX_RATE = 8_000, 192_000
_BLOCK = 1 << 18  # samples of an array taken at once
_END_SLACK = 0.01  # seconds: an annotated end may be rounded up by one mel frame
_LOUDEST = 2.0**31  # integer samples passed as floats stay below; beyond, their power would overflow float32
_OVERDRIVEN = 8.0  # 18 dB above full scale: more likely another unit than a loud recording
_CANCELLED = 0.03  # of the loudest channel is all that is left of a mix


def load_audio(
    source: str | os.PathLike | bytes | io.IOBase | RemoteBytes,
    *,
    start: float | None = None,
    end: float | None = None,
    strict: bool = False,
    max_seconds: float = 1800,
    dtype: torch.dtype = torch.float32,
    to: int = SAMPLE_RATE,
    name: str | None = None,
) -> Tensor:
    """Decodes a recording to 16 kHz mono: channels averaged, any rate from 8 to 192 kHz resampled.

    What FFmpeg decodes (wav, flac, mp3, ogg, opus, m4a, aac, webm, mp4, ...), and what else libsndfile reads; of a
    video the sound. A file that has something wrong with it is used as far as FFmpeg plays it, with one warning; one
    that lacks more than a moment of what it says it holds is refused.

    Args:
        source: a path, an address in storage, ``-`` for standard input, a pipe, the bytes of a file, or a file open
            for reading.
        start: seconds into the recording, 0 if None.
        end: seconds into the recording, its end if None; at most 0.01 s beyond it.
        strict: an error where the recording is longer than ``max_seconds`` or anything in the file is wrong; otherwise
            what is there is used, with a warning.
        max_seconds: the longest clip returned.
        dtype: ``torch.float32``, samples in [-1, 1] (or beyond, if the file is), or ``torch.int16``.
        to: Hz of the result.
        name: what errors and warnings call the recording; its path if None.

    Returns:
        [n] samples, at least 321 (one audio token) at 16 kHz and as many milliseconds at another rate.

    Raises:
        ValueError: one line with the file's name and the problem: no such file, not audio, truncated or damaged,
            no samples, NaN or Inf samples, too short, a rate out of range, ``start`` or ``end`` outside.
    """
    found = read_source(source, name)
    clip = _Clip(found.name, start, end, strict, max_seconds, to=to)
    try:
        return _finish(*_decode(found, clip), clip, dtype)
    except StorageError:  # which names its address
        raise
    except ValueError as error:
        raise ValueError(f"{found.name}: {error}") from None


def stream_audio(
    source: AudioSource,
    *,
    start: float | None = None,
    end: float | None = None,
    max_seconds: float = 1800,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """What ``load_audio`` returns, block by block, so that nobody need hold more than a block of it.

    Args:
        source: the recording.
        start, end, max_seconds, dtype: as for ``load_audio``; other mistakes of the file are warnings.

    Raises:
        TooLongError: there is more than ``max_seconds``, after as much of it.
        NotAudioError: no decoder reads it.
        ValueError: what else ``load_audio`` refuses, without the recording's name.
    """
    clip = _Clip(source.name, start, end, strict=False, max_seconds=max_seconds, whole=True)
    return _converted(*_decode(source, clip), clip, dtype)


class TooLongError(ValueError):
    """There is more of a recording than is allowed."""


class NotAudioError(ValueError):
    """Bytes that no decoder reads."""


def audio_seconds(source: AudioSource) -> float:
    """How long a recording is: by its header where that counts samples, otherwise by the time stamps of its packets.

    Raises:
        ValueError: not audio, or the header says nothing.
    """
    structure = inspect(source.data)
    seconds = 0.0
    for number in range(len(structure.parts)):
        file = _open(source, structure, number)
        seconds += file.seconds() if structure.measured is None else structure.measured
        file.close()
    return seconds


def audio_format(source: AudioSource) -> tuple[str, int, int]:
    """(container, rate in Hz, channels) of a recording, as its header says.

    Raises:
        ValueError: not audio.
    """
    file = _open(source, inspect(source.data), 0)
    file.close()
    return file.format.partition(",")[0], file.rate, file.channels


def array_to_pcm(
    array: np.ndarray | Tensor,
    sampling_rate: float = SAMPLE_RATE,
    *,
    start: float | None = None,
    end: float | None = None,
    strict: bool = False,
    max_seconds: float = 1800,
    dtype: torch.dtype = torch.float32,
    to: int = SAMPLE_RATE,
) -> Tensor:
    """What ``load_audio`` does, for samples already in memory.

    Args:
        array: [n] samples, floating point in [-1, 1], int16 or int32 (scaled by their full range).
        sampling_rate: whole Hz, 8,000 to 192,000.
        start, end, strict, max_seconds, dtype: as for ``load_audio``.
        to: Hz of the result.

    Returns:
        [n'] samples.

    Raises:
        ValueError: not one-dimensional, another dtype, or what ``load_audio`` refuses.
    """
    samples = torch.as_tensor(array)
    clip = _Clip("audio array", start, end, strict, max_seconds, to=to)
    try:
        if samples.ndim != 1:
            raise ValueError(f"expected a 1-D array of samples, got shape {tuple(samples.shape)}")
        if not samples.is_floating_point() and samples.dtype not in (torch.int16, torch.int32):
            raise ValueError(f"samples must be floating point, int16 or int32, not {samples.dtype}")
        rate = int(sampling_rate) if math.isfinite(sampling_rate) else 0
        if rate != sampling_rate:
            raise ValueError(f"sample rate {sampling_rate} Hz is not a whole number")
        first, stop = clip.samples(rate, len(samples))
        pieces = samples.detach().cpu()[first:stop].split(_BLOCK)
        return _finish(rate, ((mix_down(piece[None], rate)) for piece in pieces), clip, dtype)
    except ValueError as error:
        raise ValueError(f"{clip.name}: {error}") from None


@dataclass
class _Clip:
    """Which part of which recording is wanted, in seconds, and what is wrong with the recording."""

    name: str
    start: float | None
    end: float | None
    strict: bool
    max_seconds: float
    whole: bool = False  # or it is an error, if it is not strict otherwise
    to: int = SAMPLE_RATE  # Hz of what is returned
    problems: list[str] = field(default_factory=list)

    def samples(self, rate: int, length: int | None = None) -> tuple[int, int]:
        """(first sample, last sample + 1) at ``rate`` Hz of a recording of ``length`` samples, if that is known.

        One sample more than ``max_seconds`` is read where there is one: that is how a longer recording is noticed.
        """
        start = self.start or 0.0
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ValueError(f"sample rate {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz")
        if not 0 <= start < math.inf:
            raise ValueError(f"start {start} s is outside the recording")
        if self.end == math.inf:
            raise ValueError(f"end {self.end} s is outside the recording")
        if self.end is not None and not self.end > start:
            raise ValueError(f"end {self.end} s is not after start {start} s")
        if length is not None:
            self.check(rate, length)
        first = round(start * rate)
        limit = round(self.max_seconds * rate) + 1
        return first, first + limit if self.end is None else min(first + limit, round(self.end * rate))

    def check(self, rate: int, length: int) -> None:
        """Compares the part that is wanted with the length of the recording, in samples."""
        if length == 0:
            if self.problems:
                raise ValueError(f"damaged or truncated: there are no samples in it ({'; '.join(self.problems)})")
            raise ValueError("the recording is empty: there are no samples in it")
        if round((self.start or 0.0) * rate) >= length:
            raise ValueError(f"start {self.start} s is outside the recording of {length / rate:.3f} s")
        if self.end is not None and self.end > length / rate + _END_SLACK:
            raise ValueError(f"end {self.end} s is outside the recording of {length / rate:.3f} s")

    def warn(self, problem: str) -> None:
        warnings.warn(f"{self.name}: {problem}", stacklevel=2)

    def complain(self, problem: str, remedy: str) -> None:
        if self.strict:
            raise ValueError(problem)
        self.warn(f"{problem}; {remedy}")


def _open(source: AudioSource, structure: Structure, number: int) -> AudioFile | SoundFileAudio:
    """The part of a file with this number, by the first decoder that reads it."""
    try:
        return AudioFile(source.data, structure, number)
    except StorageError:
        raise
    except ValueError as error:
        reason = str(error)
    if bytes(source.data[4:8]) == b"ftyp" and source.data.find(b"moov") < 0:
        raise ValueError("truncated mp4: its index (moov), which may stand at the end, is missing")
    if not bytes(source.data[:3]).startswith((b"ID3", b"\xff")):  # libmpg123 says on the terminal what it does not like
        named_mp3 = source.path is not None and source.path.lower().endswith(".mp3")  # a name that libsndfile goes by
        with contextlib.suppress(ValueError):
            return SoundFileAudio(bytes(source.data) if source.path is None or named_mp3 else source.path)
    raise NotAudioError(f"not audio that FFmpeg or libsndfile reads ({reason})")


def _decode(source: AudioSource, clip: _Clip) -> tuple[int, Iterator[PcmBlock]]:
    """(rate in Hz, blocks of the part that is wanted)."""
    structure = inspect(source.data)
    clip.problems += structure.problems
    file = _open(source, structure, 0)
    window = clip.samples(file.rate)
    return file.rate, _wanted(source, structure, file, clip, window)


def _wanted(
    source: AudioSource, structure: Structure, file: AudioFile | SoundFileAudio, clip: _Clip, window: tuple[int, int]
) -> Iterator[PcmBlock]:
    """The blocks between two samples, and every check that needs the end of the file where it comes before the last."""
    (first, stop), at = window, None
    with contextlib.closing(_played(source, structure, file, clip)) as played:
        for block in _at_one_rate(played, file.rate):
            at = file.begin if at is None else at
            piece = block.pcm[max(0, first - at) : stop - at]
            at += block.pcm.numel()
            if piece.numel():
                yield PcmBlock(block.rate, piece, block.loudest)
            if at >= stop:
                return
    clip.check(file.rate, round(file.span * file.rate) if at is None else at)


def _played(
    source: AudioSource, structure: Structure, file: AudioFile | SoundFileAudio, clip: _Clip
) -> Generator[PcmBlock, None, None]:
    """Every stream of the file; of a file with one only what begins shortly before the part that is wanted."""
    parts = len(structure.parts)
    for number in range(parts):
        file = file if number == 0 else _open(source, structure, number)
        try:
            yield from file.blocks((clip.start or 0.0) if parts == 1 else 0.0)
            _check_end(file, structure.promised, clip)
        finally:
            if file.damaged:
                packets = "packets" if file.damaged > 1 else "packet"
                clip.problems.append(f"{file.damaged} damaged {packets} could not be decoded")
            file.close()


def _check_end(file: AudioFile | SoundFileAudio, counted: float | None, clip: _Clip) -> None:
    """Compares what was played with what the header promises and with the time stamps."""
    promised = file.promised if counted is None else counted
    if promised is not None and promised - file.stamped > file.slack:
        raise ValueError(f"truncated: {file.stamped:.2f} s of {promised:.2f} s are there")
    if file.counts and file.promised is not None and round((file.promised - file.stamped) * file.rate):
        clip.problems.append(f"{file.stamped:.4f} s of {file.promised:.4f} s are there")
    missing = file.span - file.decoded
    if missing > file.slack and (file.damaged or file.format not in GAPS):
        raise ValueError(f"damaged: {missing:.2f} s of {file.span:.2f} s cannot be decoded")
    if file.counts and round(missing * file.rate) > 0:
        clip.problems.append(f"{missing:.3f} s in it cannot be decoded")
    if counted is not None and file.stamped - counted > file.slack:
        clip.problems.append(f"its header counts {counted:.2f} s, {file.stamped:.2f} s are there")
    if file.torn:
        clip.problems.append("its last frame is incomplete")


def _at_one_rate(blocks: Iterable[PcmBlock], rate: int) -> Iterator[PcmBlock]:
    """Streams one after another may have rates of their own."""
    for own, group in groupby(blocks, key=lambda block: block.rate):
        if own == rate:
            yield from group
        elif not MIN_RATE <= own <= MAX_RATE:
            raise ValueError(f"sample rate {own} Hz is outside {MIN_RATE} to {MAX_RATE} Hz")
        else:
            yield from (PcmBlock(rate, pcm) for pcm in resample((block.pcm for block in group), own, rate))


def _finish(rate: int, blocks: Iterable[PcmBlock], clip: _Clip, dtype: torch.dtype) -> Tensor:
    """Checks, limits, resamples and converts; says what was wrong with the recording."""
    return torch.cat(list(_converted(rate, blocks, clip, dtype)))


def _converted(rate: int, blocks: Iterable[PcmBlock], clip: _Clip, dtype: torch.dtype) -> Iterator[Tensor]:
    if dtype not in (torch.float32, torch.int16):
        raise ValueError(f"dtype must be torch.float32 or torch.int16, not {dtype}")
    count, most, heard = 0, round(clip.max_seconds * clip.to), False
    for block in resample(_checked(rate, blocks, clip), rate, clip.to):
        pcm = block[: most - count]
        count += pcm.numel()
        heard = heard or bool(pcm.any())
        yield pcm if dtype == torch.float32 else (pcm * 32768).round_().clamp_(-32768, 32767).to(torch.int16)
    if count * SAMPLE_RATE < MIN_SAMPLES * clip.to:
        raise ValueError(
            f"{count / clip.to:.4f} s is too short: one audio token needs {MIN_SAMPLES / SAMPLE_RATE:.4f} s"
        )
    if clip.problems:
        if not heard:
            raise ValueError(f"damaged: there is only silence ({'; '.join(clip.problems)})")
        clip.complain("; ".join(dict.fromkeys(clip.problems)), "what is there is used")


def _checked(rate: int, blocks: Iterable[PcmBlock], clip: _Clip) -> Iterator[Tensor]:
    """The samples, if they are such; warns of what is no mistake of the file but hardly what was meant."""
    count, limit, mix, loudest = 0, round(clip.max_seconds * rate), 0.0, 0.0
    for block in blocks:
        low, high = (float(bound) for bound in block.pcm.aminmax())
        peak = max(-low, high)
        if not peak <= _LOUDEST:
            bad = (~torch.isfinite(block.pcm)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(f"NaN or Inf sample at {(clip.start or 0.0) + (count + bad[0]) / rate:.3f} s")
            raise ValueError(f"samples reach {peak:.3g} where full scale is 1")
        mix, loudest = max(mix, peak), max(loudest, block.loudest)
        yield block.pcm
        count += block.pcm.numel()
    if count > limit and clip.whole:
        raise TooLongError(f"longer than {clip.max_seconds:g} s")
    if count > limit:
        clip.complain(f"longer than {clip.max_seconds:g} s", "the rest is left out")
    if mix > _OVERDRIVEN:
        clip.warn(f"samples reach {mix:.4g} where full scale is 1: floating-point samples in units of integers?")
    if mix < _CANCELLED * loudest:
        clip.warn(f"the channels cancel each other: their mean reaches {mix:.2g}, one of them {loudest:.2g}")
