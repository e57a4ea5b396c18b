"""Samples as the bytes of a file, for those who take files."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.resample import RationalResampler

PCM_RATE = 24_000  # of samples without a header, as OpenAI's API has them
OPUS_RATE = 48_000
HEADER = 44  # bytes before the samples of a wav file
UNKNOWN = 0xFFFFFFFF  # what a wav header says of a length that is not known yet
PAGE = "40000"  # microseconds of sound in a page of Ogg, at most: a page is sent when it is full
# What libraries make: (container, codec, sample format, options of the container).
MADE: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "opus": ("ogg", "libopus", "flt", {"page_duration": PAGE}),
    "flac": ("flac", "flac", "s16", {}),
    "mp3": ("mp3", "libmp3lame", "fltp", {"write_xing": "0", "id3v2_version": "0"}),
    "aac": ("adts", "aac", "fltp", {}),
}
MIME = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
}


def wav(pcm: Tensor | np.ndarray) -> bytes:
    """The bytes of a wav file of samples [n], int16, 16 kHz."""
    data = np.asarray(pcm).astype("<i2").tobytes()
    return wav_header(SAMPLE_RATE, len(data)) + data


def flac(pcm: Tensor | np.ndarray) -> bytes:
    """The bytes of a flac file of samples [n], int16, 16 kHz."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.asarray(pcm), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


class SoundEncoder:
    """The bytes of a file while its sound comes: one channel, ``pcm`` of 24 kHz without a header, ``opus`` of 48 kHz,
    and others at the sound's own rate. 16 bits a sample where samples are kept.

    A wav file says that its length is not known, as everything that reads one from a pipe expects.

    Args:
        form: one of ``MIME``.
        rate: of the samples, Hz.

    Raises:
        ValueError: no such format, or none that this machine's FFmpeg writes.
    """

    def __init__(self, form: str, rate: int):
        if form not in MIME:
            raise ValueError(f"there is no format {form!r:.40}; there are {', '.join(MIME)}")
        self.form, self.rate, self.at = form, {"pcm": PCM_RATE, "opus": OPUS_RATE}.get(form, rate), 0
        self._resampler = RationalResampler(rate, self.rate)
        self._begun, self._file, self._container = False, io.BytesIO(), None
        if form in MADE:
            self._open(*MADE[form])

    def push(self, pcm: Tensor) -> bytes:
        """What the next samples [n] float32 in [-1, 1] complete."""
        return self._encoded(self._resampler.push(pcm))

    def finish(self) -> bytes:
        """What is left when no more comes."""
        found = self._encoded(self._resampler.end())
        if self._container is None:
            return found
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._container = None
        return found + self._written()

    def _open(self, container: str, codec: str, layout: str, options: dict[str, str]) -> None:
        import av

        try:
            self._container = av.open(_Pipe(self._file), "w", format=container, container_options=options)
            self._stream: Any = self._container.add_stream(codec, rate=self.rate)
            self._stream.layout, self._stream.format = "mono", layout
            self._container.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            raise ValueError(f"{self.form} is not written here: {error}; wav and pcm are") from None
        self.layout = layout

    def _encoded(self, pcm: Tensor) -> bytes:
        if self._container is None:
            samples = (pcm * 32768).round_().clamp_(-32768, 32767).to(torch.int16).numpy().astype("<i2").tobytes()
            head = b"" if self._begun or self.form != "wav" else wav_header(self.rate)
            self._begun = True
            return head + samples
        if len(pcm):
            self._container.mux(self._stream.encode(self._frame(pcm)))
        return self._written()

    def _frame(self, pcm: Tensor) -> Any:
        import av

        found = pcm.clamp(-1, 1).numpy()[None]
        if self.layout == "s16":
            found = (found * 32767).round().astype(np.int16)
        frame = av.AudioFrame.from_ndarray(found, format=self.layout, layout="mono")
        frame.sample_rate, frame.pts = self.rate, self.at
        self.at += len(pcm)
        return frame

    def _written(self) -> bytes:
        data = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return data


class _Pipe:
    """A file that is only written to, from its beginning to its end."""

    def __init__(self, file: io.BytesIO):
        self.write = file.write


def wav_header(rate: int, size: int = UNKNOWN) -> bytes:
    """Of 16-bit samples of one channel; ``size`` is their bytes. More than 4 GiB are a length that is not known."""
    whole, size = min(size + 36, UNKNOWN), min(size, UNKNOWN)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", whole, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16,
                       b"data", size)  # fmt: skip
