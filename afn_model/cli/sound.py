"""Where a command's sound comes from and goes to: standard input and output, files, a microphone and a loudspeaker."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from afn_model.audio.encode import HEADER, MIME, SoundEncoder, wav_header
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.files import atomic_path

STDIO = "-"
PIECE = SAMPLE_RATE // 50  # samples that are taken together: 20 ms
WAITING = 512  # pieces that wait to be heard, at most: no more is read of a pipe, and a microphone loses what comes
FORMS = {"oga": "opus", "ogg": "opus"}


class SoundOut(Protocol):
    """Takes the next samples [n] float32; ``stop`` forgets those that are not heard yet."""

    def write(self, pcm: Tensor) -> None: ...
    def stop(self) -> None: ...


class EncodedOut:
    """Writes a file, or to a pipe; what has been written stays.

    Args:
        file: open for writing bytes.
        form, rate: as of ``SoundEncoder``.
    """

    def __init__(self, file: Any, form: str, rate: int):
        self.file, self.size = file, 0
        self.encoder = SoundEncoder(form, rate)

    def write(self, pcm: Tensor) -> None:
        self._put(self.encoder.push(pcm))

    def stop(self) -> None:
        pass

    def end(self) -> None:
        """No more comes; a wav file is told how long it is."""
        self._put(self.encoder.finish())
        if self.encoder.form == "wav":
            self.file.seek(0)
            self.file.write(wav_header(self.encoder.rate, self.size - HEADER))

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()
        self.size += len(data)


class Loudspeaker:
    """Plays what comes, and is silent where nothing does.

    Args:
        rate: of the samples, Hz.
    """

    def __init__(self, rate: int):
        self._waiting, self._lock = bytearray(), threading.Lock()
        options = {"samplerate": rate, "channels": 1, "dtype": "float32", "callback": self._play}
        self.device = opened("RawOutputStream", **options)

    def write(self, pcm: Tensor) -> None:
        with self._lock:
            self._waiting += pcm.numpy().tobytes()

    def stop(self) -> None:
        with self._lock:
            self._waiting.clear()

    @property
    def playing(self) -> bool:
        with self._lock:
            return bool(self._waiting)

    def _play(self, out: Any, frames: int, *_: Any) -> None:
        size = len(out)
        with self._lock:
            data = bytes(self._waiting[:size])
            del self._waiting[:size]
        out[:] = data.ljust(size, b"\0")


@contextmanager
def output(out: str | None, rate: int) -> Iterator[SoundOut]:
    """Where sound goes: a file by its ending, "-" for 16-bit samples of 24 kHz, None for the loudspeaker, which is
    played to its end when the block is left without an error.

    Raises:
        ValueError: as of ``form_of`` and ``SoundEncoder``, or no loudspeaker.
    """
    if out is None:
        speaker = Loudspeaker(rate)
        with speaker.device:
            yield speaker
            while speaker.playing:
                threading.Event().wait(0.05)
        return
    if out == STDIO:
        raw = EncodedOut(sys.stdout.buffer, "pcm", rate)
        yield raw
        raw.end()
        return
    with atomic_path(out) as path, path.open("w+b") as file:
        encoded = EncodedOut(file, form_of(out), rate)
        yield encoded
        encoded.end()


def form_of(out: str) -> str:
    """The format of a file's name.

    Raises:
        ValueError: it has no ending of one.
    """
    ending = Path(out).suffix[1:].lower()
    form = FORMS.get(ending, ending)
    if form not in MIME:
        raise ValueError(f"--out {out}: expected is a name that ends with one of .{', .'.join(MIME)}, or -")
    return form


def opened(kind: str, **options: Any) -> Any:
    """A stream of the ``sounddevice`` package.

    Raises:
        ValueError: it is not installed, or there is no such device.
    """
    if find_spec("sounddevice") is None:
        what = "a microphone and a loudspeaker need pip install sounddevice"
        raise ValueError(f"{what}; else name recordings, --stream - and --out FILE")
    try:
        return getattr(import_module("sounddevice"), kind)(**options)
    except Exception as error:  # PortAudio's own, and OSError where the library is not there
        raise ValueError(f"the sound device cannot be used: {error}") from None


@contextmanager
def incoming(stream: str | None) -> Iterator[queue.Queue[np.ndarray | None]]:
    """Samples [n] int16, 16 kHz, as they come; None when no more do.

    Args:
        stream: "-" for standard input, None for the microphone.

    Raises:
        ValueError: standard input is a terminal, or there is no microphone.
    """
    found: queue.Queue[np.ndarray | None] = queue.Queue(WAITING)
    if stream is None:

        def heard(data: Any, *_: Any) -> None:
            if not found.full():
                found.put_nowait(np.frombuffer(bytes(data), dtype=np.int16))

        options = {"samplerate": SAMPLE_RATE, "channels": 1, "dtype": "int16", "blocksize": PIECE, "callback": heard}
        with opened("RawInputStream", **options):
            yield found
        return
    if sys.stdin.isatty():
        raise ValueError("-: standard input is a terminal; send 16-bit PCM of 16 kHz through a pipe")
    # Not through the buffer: Python aborts where it ends while a thread waits in that.
    file = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    threading.Thread(target=_read, args=(file, found), daemon=True).start()
    yield found


def _read(file: Any, into: queue.Queue[np.ndarray | None]) -> None:
    rest = b""
    try:
        while data := file.read(2 * PIECE):
            data = rest + data
            whole = len(data) // 2 * 2
            rest = data[whole:]
            into.put(np.frombuffer(data[:whole], dtype="<i2").astype(np.int16))
    finally:
        into.put(None)
