"""Recordings whose content can be read off the samples, in many formats, and odd files made of them.

Second i of a ladder holds tone i, so that a second that is missing, repeated or in the wrong place is seen.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np

LOWEST, STEP = 300.0, 100.0  # Hz: tone 0, and from one tone to the next
CODECS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "opus": "libopus", "m4a": "aac", "adts": "aac"}
CODECS |= {"mp4": "aac", "webm": "libopus", "matroska": "libopus", "mpegts": "aac", "au": "pcm_s16be", "3gp": "amr_nb"}
MUXERS = {"m4a": "ipod", "opus": "ogg"}


def ladder(seconds: float, rate: int = 16_000, channels: int = 1, first: int = 0) -> np.ndarray:
    """[n, channels] float32: a tone a second, from tone ``first`` on, in all channels."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * (LOWEST + STEP * (first + np.floor(time))) * time)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def heard(pcm) -> list[int]:
    """The tone in the middle of every whole second of [n] samples at 16 kHz; -1 where there is silence."""
    pcm = np.asarray(pcm, np.float32)
    tones = []
    for second in range(len(pcm) // 16_000):
        middle = pcm[second * 16_000 + 4_000 : second * 16_000 + 12_000]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
        loud = float(np.abs(middle).max()) > 0.05
        tones.append(round((int(spectrum.argmax()) * 2 - LOWEST) / STEP) if loud else -1)
    return tones


def encode(samples: np.ndarray, rate: int, kind: str, options: dict[str, str] | None = None, **codec) -> bytes:
    """A file made by FFmpeg.

    Args:
        samples: [n, channels] float32.
        rate: Hz.
        kind: key of ``CODECS``, or a muxer's name with ``name=`` of a codec.
        options: of the muxer.
        codec: ``name``, ``bit_rate``, ``options`` of the encoder.
    """
    import av

    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        with av.open(str(path), "w", format=MUXERS.get(kind, kind), options=options or {}) as container:
            stream = container.add_stream(codec.pop("name", CODECS.get(kind, kind)), rate=rate, layout=layout)
            for name, value in codec.items():
                setattr(stream, name, value)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.reshape(1, -1)), "flt", layout)
            frame.sample_rate, frame.pts = rate, 0
            size = stream.codec_context.frame_size or 4096
            shape = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=size)
            for piece in [*shape.resample(frame), *shape.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        return path.read_bytes()


def sound_file(samples: np.ndarray, rate: int, container: str, subtype: str | None = None, **options) -> bytes:
    """A file made by libsndfile."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype, **options)
    return file.getvalue()
