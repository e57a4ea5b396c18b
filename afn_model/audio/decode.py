"""From a file to 30 s windows of 16 kHz mono samples, and how many frames and tokens they make.

pcm = load_audio("talk.mp3", start=60.0, end=90.0)     # [n] float32
windows, samples = split_windows(pcm)                  # [W, T], [W]
audio_tokens(len(pcm))                                 # tokens the language model will see
"""

from __future__ import annotations

import importlib.util
import io
import math
import mmap
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.container import check_chunk, check_ogg, is_mp3, walk_mp3, with_frame_count
from afn_model.audio.frames import (
    MIN_SAMPLES,
    SAMPLE_RATE,
)
from afn_model.audio.resample import resample

MIN_RATE, MAX_RATE = 8_000, 192_000
_BLOCK = 1 << 18  # samples decoded at once, all channels together
_END_SLACK = 0.01  # seconds: an annotated end may be rounded up by one mel frame
_LOUDEST = 2.0**31  # integer samples passed as floats stay below; beyond, their power would overflow float32


def load_audio(
    source: str | os.PathLike | bytes | io.IOBase,
    *,
    start: float | None = None,
    end: float | None = None,
    strict: bool = False,
    max_seconds: float = 1800,
    dtype: torch.dtype = torch.float32,
    name: str | None = None,
) -> Tensor:
    """Decodes a recording to 16 kHz mono: channels averaged, any rate from 8 to 192 kHz resampled.

    wav, flac, ogg, mp3 and whatever else libsndfile reads; other formats by torchcodec where it is installed.

    Args:
        source: a path, the bytes of a file, or a file open for reading.
        start: seconds into the recording, 0 if None.
        end: seconds into the recording, its end if None; at most 0.01 s beyond it.
        strict: an error where the recording is longer than ``max_seconds`` or its last mp3 frame is incomplete;
            otherwise what is there is used, with a warning.
        max_seconds: the longest clip returned.
        dtype: ``torch.float32``, samples in [-1, 1] (or beyond, if the file is), or ``torch.int16``.
        name: what errors and warnings call the recording; its path if None.

    Returns:
        [n] samples, at least 321 (one audio token).

    Raises:
        ValueError: one line with the file's name and the problem: no such file, not audio, truncated or damaged,
            no samples, NaN or Inf samples, too short, a rate out of range, ``start`` or ``end`` outside.
    """
    name, handle, data = _open(source, name)
    clip = _Clip(name, start, end, strict, max_seconds)
    try:
        return _finish(_decode(handle, data, clip), clip, dtype)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def array_to_pcm(
    array: np.ndarray | Tensor,
    sampling_rate: int = SAMPLE_RATE,
    *,
    start: float | None = None,
    end: float | None = None,
    strict: bool = False,
    max_seconds: float = 1800,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What ``load_audio`` does, for samples already in memory.

    Args:
        array: [n] samples, floating point in [-1, 1], int16 or int32 (scaled by their full range).
        sampling_rate: Hz, 8,000 to 192,000.
        start, end, strict, max_seconds, dtype: as for ``load_audio``.

    Returns:
        [n'] samples at 16 kHz.

    Raises:
        ValueError: not one-dimensional, another dtype, or what ``load_audio`` refuses.
    """
    samples = torch.as_tensor(array)
    clip = _Clip("audio array", start, end, strict, max_seconds)
    try:
        if samples.ndim != 1:
            raise ValueError(f"expected a 1-D array of samples, got shape {tuple(samples.shape)}")
        if not samples.is_floating_point() and samples.dtype not in (torch.int16, torch.int32):
            raise ValueError(f"samples must be floating point, int16 or int32, not {samples.dtype}")
        return _finish(_from_memory(samples.detach().cpu()[:, None], sampling_rate, clip), clip, dtype)
    except ValueError as error:
        raise ValueError(f"{clip.name}: {error}") from None


@dataclass(frozen=True)
class _Clip:
    """Which part of which recording is wanted, in seconds."""

    name: str
    start: float | None
    end: float | None
    strict: bool
    max_seconds: float

    def frames(self, rate: int, length: int | None) -> tuple[int, int]:
        """(first frame, frames to read) at ``rate`` Hz of a recording of ``length`` frames, if that is known.

        One frame more than ``max_seconds`` is read where there is one: that is how a longer recording is noticed.
        """
        start = self.start or 0.0
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ValueError(f"sample rate {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz")
        if length == 0:
            raise ValueError("no samples")
        if not 0 <= start < math.inf or (length is not None and round(start * rate) >= length):
            raise ValueError(f"start {start} s is outside the recording{_of_seconds(length, rate)}")
        if self.end is not None and not self.end > start:
            raise ValueError(f"end {self.end} s is not after start {start} s")
        if self.end is not None and (self.end == math.inf or length is not None):
            self.check_end(rate, length)
        first, limit = round(start * rate), round(self.max_seconds * rate) + 1
        return first, limit if self.end is None else min(limit, round(self.end * rate) - first)

    def check_end(self, rate: int, length: int | None) -> None:
        if self.end is not None and (length is None or self.end > length / rate + _END_SLACK):
            raise ValueError(f"end {self.end} s is outside the recording{_of_seconds(length, rate)}")

    def complain(self, problem: str, remedy: str) -> None:
        if self.strict:
            raise ValueError(problem)
        warnings.warn(f"{self.name}: {problem}; {remedy}", stacklevel=2)


def _of_seconds(length: int | None, rate: int) -> str:
    return "" if length is None else f" of {length / rate:.3f} s"


@dataclass(frozen=True)
class _Decoded:
    """Part of a recording: blocks [frames, channels], their rate in Hz, and where they start, in frames."""

    blocks: Iterable[Tensor]
    rate: int
    first: int


def _open(source, name: str | None) -> tuple[str, str | io.BytesIO, memoryview | mmap.mmap | bytes]:
    """(name for messages, what the decoder opens, all bytes)."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = name or "<bytes>", bytes(source)
    elif hasattr(source, "read"):
        name, data = name or str(getattr(source, "name", "<file>")), source.read()
        if not isinstance(data, bytes):
            raise ValueError(f"{name}: the file must be open in binary mode")
    else:
        path = os.fspath(source)
        name = name or path
        if path.startswith(("http://", "https://")):
            raise ValueError(f"{name}: only local files are read; download it first")
        if os.path.isdir(path):
            raise ValueError(f"{name}: is a directory, not an audio file")
        try:
            with open(path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""
        except FileNotFoundError:
            raise ValueError(f"{name}: no such file") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: cannot be read ({error})") from None
    if not len(data):
        raise ValueError(f"{name}: the file is empty")
    return name, path if isinstance(data, mmap.mmap) else io.BytesIO(data), data


def _decode(handle: str | io.BytesIO, data, clip: _Clip) -> _Decoded:
    import soundfile

    slack = 0
    if data[:4] == b"OggS":
        check_ogg(data)
    if is_mp3(data):
        walk = walk_mp3(data)
        if walk.cut:
            clip.complain("truncated mp3, the last frame is incomplete", "the rest is used")
        if not walk.counted:
            slack = 2 * 1152  # where a stream was cut out of a longer one, the first frames may decode to nothing
            handle = io.BytesIO(with_frame_count(data, walk))
    try:
        file = _sequential_file()(handle)
    except (soundfile.SoundFileError, TypeError) as error:
        return _decode_torchcodec(handle, clip, _reason(error))
    check_chunk(file.extra_info)
    length = file.frames if file.frames < 1 << 62 else None
    first, count = clip.frames(file.samplerate, length)
    return _Decoded(_read(file, first, count, clip, length, slack), file.samplerate, first)


@lru_cache(maxsize=1)
def _sequential_file():
    import soundfile

    class SequentialFile(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False  # or every read ends in a seek, which fails at the end of a flac of unknown length

    return SequentialFile


def _read(file, first: int, count: int, clip: _Clip, length: int | None, slack: int) -> Iterator[Tensor]:
    import soundfile

    rate, stop = file.samplerate, first + count
    at = max(0, first - rate)  # mp3 and opus decode exactly only some frames after a seek
    with file:
        try:
            if at:
                file.seek(at)
            while at < stop:
                block = file.read(min(max(_BLOCK // file.channels, 1), stop - at), dtype="float32", always_2d=True)
                if not len(block):
                    break
                wanted = block[max(0, first - at) :]
                at += len(block)
                if len(wanted):
                    yield torch.from_numpy(wanted)
        except soundfile.SoundFileError as error:
            raise ValueError(f"damaged or truncated ({_reason(error)})") from None
    if length is not None and at < min(stop, length - slack):
        raise ValueError(f"damaged or truncated: {at / rate:.2f} s decoded of {length / rate:.2f} s")
    if at < stop:
        clip.check_end(rate, at)


def _decode_torchcodec(handle: str | io.BytesIO, clip: _Clip, reason: str) -> _Decoded:
    if importlib.util.find_spec("torchcodec") is None:
        raise ValueError(f"not audio that libsndfile reads ({reason}); torchcodec, for other formats, is not installed")
    try:
        from torchcodec.decoders import AudioDecoder  # pyright: ignore[reportMissingImports]

        decoded = AudioDecoder(handle).get_all_samples()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"not audio (libsndfile: {reason}; torchcodec: {_reason(error)})") from None
    return _from_memory(decoded.data.T, decoded.sample_rate, clip)


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "error_string", error)).splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Error : ").rstrip(".")


def _from_memory(samples: Tensor, rate: int, clip: _Clip) -> _Decoded:
    first, count = clip.frames(rate, len(samples))
    scale = None if samples.is_floating_point() else 1.0 / (torch.iinfo(samples.dtype).max + 1)
    blocks = (
        block.float() * scale if scale else block.float() for block in samples[first : first + count].split(_BLOCK)
    )
    return _Decoded(blocks, rate, first)


def _finish(decoded: _Decoded, clip: _Clip, dtype: torch.dtype) -> Tensor:
    """Checks, mixes down, limits, resamples and converts."""
    if dtype not in (torch.float32, torch.int16):
        raise ValueError(f"dtype must be torch.float32 or torch.int16, not {dtype}")
    pieces = list(resample(_mix_down(decoded, clip), decoded.rate, SAMPLE_RATE))
    pcm = torch.cat(pieces)[: round(clip.max_seconds * SAMPLE_RATE)] if pieces else torch.empty(0)
    if pcm.numel() == 0:
        raise ValueError(f"no samples from {clip.start} s on" if clip.start else "no samples")
    if pcm.numel() < MIN_SAMPLES:
        raise ValueError(
            f"{pcm.numel() / SAMPLE_RATE:.4f} s is too short: one audio token needs {MIN_SAMPLES / SAMPLE_RATE:.4f} s"
        )
    return pcm if dtype == torch.float32 else (pcm * 32768).round_().clamp_(-32768, 32767).to(torch.int16)


def _mix_down(decoded: _Decoded, clip: _Clip) -> Iterator[Tensor]:
    count, limit = 0, round(clip.max_seconds * decoded.rate)
    for block in decoded.blocks:
        low, high = (float(bound) for bound in block.aminmax())
        if not -_LOUDEST <= low <= high <= _LOUDEST:
            bad = (~torch.isfinite(block)).any(1).nonzero().flatten().tolist()
            if bad:
                raise ValueError(f"NaN or Inf sample at {(decoded.first + count + bad[0]) / decoded.rate:.3f} s")
            raise ValueError(f"samples reach {max(-low, high):.3g} where full scale is 1")
        channels = block.shape[1]
        yield block[:, 0] if channels == 1 else torch.mv(block, torch.full((channels,), 1 / channels))
        count += len(block)
    if count > limit:
        clip.complain(f"longer than {clip.max_seconds:g} s", "the rest is left out")
