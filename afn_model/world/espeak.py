"""Speech synthesis: the eSpeak NG library shipped inside the ``espeakng-loader`` wheel (extra: ``demo``).

``with Espeak() as engine: pcm = engine.say("seven", voice="en-us", variant="f2", rate=170, pitch=50)``
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from afn_model.audio.frames import SAMPLE_RATE

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_SILENCE = 0.01  # of the peak (-40 dB): below the weakest fricative that starts a word, above the resampler's ringing

_LOCK = threading.Lock()
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _VoiceStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("rank", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Voice:
    """One voice of the library: ``language`` is what ``say(voice=...)`` takes."""

    language: str
    name: str


class Espeak:
    """One synthesiser with a state of its own; a context manager.

    eSpeak NG keeps its state in globals, some of which (pitch flutter) run on from one utterance to the next and cannot
    be reset. Each instance therefore loads a private copy of the library: instances are independent of each other, and
    the n-th utterance of a fresh instance is the same in every process. Threads take turns (a lock).

    Raises:
        ImportError: the ``espeakng-loader`` package is absent.
    """

    def __init__(self):
        loader = _loader()
        with tempfile.TemporaryDirectory(prefix="afn-espeak-", ignore_cleanup_errors=True) as folder:
            self._library = ctypes.CDLL(shutil.copy(loader.get_library_path(), folder))
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceStruct))
        data = loader.get_data_path()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
        if self.sample_rate <= 0:
            raise ValueError(f"eSpeak NG could not read its data in {data}")
        self._chunks: list[bytes] = []
        self._callback = _Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)
        self._languages = {voice.language for voice in self.voices()}
        self._variants = {""} | {path.name for path in (Path(data) / "voices" / "!v").iterdir()}

    def __enter__(self) -> Espeak:
        return self

    def __exit__(self, *_) -> None:
        self._library.espeak_Terminate()

    def voices(self) -> list[Voice]:
        """Voices of the library, one per language or accent."""
        table, found = self._library.espeak_ListVoices(None), []
        while table[len(found)]:
            voice = table[len(found)].contents
            # The list of languages starts with a priority byte.
            found.append(Voice(voice.languages[1:].decode(), voice.name.decode()))
        return found

    def say(
        self, text: str, *, voice: str = "en-us", variant: str = "", rate: int = 170, pitch: int = 50, volume: int = 60
    ) -> torch.Tensor:
        """Synthesise ``text`` at 16 kHz, trimmed so that speech starts at sample 0 and ends at the last one.

        Args:
            text: what to say, non-empty.
            voice: language or accent, such as "en-us" or "es" (``voices()``).
            variant: speaker, such as "m3" or "f2"; "" is the plain voice.
            rate: words per minute, 80 to 450.
            pitch: 0 to 99.
            volume: 0 to 200; from about 100 on, some variants clip.
        Returns:
            [n] float32 in [-1, 1].
        Raises:
            ValueError: an unknown voice or variant, a parameter out of range, or a text that makes no sound.
        """
        if voice not in self._languages:
            raise ValueError(f"eSpeak NG has no voice {voice!r}")
        if variant not in self._variants:
            raise ValueError(f"eSpeak NG has no variant {variant!r}")
        for name, value, low, high in (("rate", rate, 80, 450), ("pitch", pitch, 0, 99), ("volume", volume, 0, 200)):
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")
        with _LOCK:
            pcm = self._synthesise(text, f"{voice}+{variant}" if variant else voice, rate, pitch, volume)
        if not pcm.any():
            raise ValueError(f"eSpeak NG says nothing for {text!r} with voice {voice!r}")
        wave = _trim(_resample(pcm / 32768, self.sample_rate)).clip(-1, 1)
        return torch.from_numpy(wave.astype(np.float32))

    def _synthesise(self, text: str, voice: str, rate: int, pitch: int, volume: int) -> np.ndarray:
        self._chunks.clear()
        # Breathy variants draw from the C library's generator, which all instances share.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._library.espeak_SetVoiceByName(voice.encode())
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_VOLUME, volume)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        status = self._library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, _UTF8, None, None)
        if status:
            raise ValueError(f"eSpeak NG could not say {text!r} (status {status})")
        self._library.espeak_Synchronize()
        return np.frombuffer(b"".join(self._chunks), np.int16)

    def _collect(self, wave, n: int, _events) -> int:
        if wave and n > 0:
            self._chunks.append(ctypes.string_at(wave, 2 * n))
        return 0


def _loader():
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            'speech synthesis needs the espeakng-loader package: pip install "afn-kernels[demo]"'
        ) from error
    return espeakng_loader


def _resample(pcm: np.ndarray, rate: int) -> np.ndarray:
    # Through the spectrum, in NumPy: torch's thread pool does not survive the fork of a data loader's worker.
    divisor = math.gcd(rate, SAMPLE_RATE)
    old, new = rate // divisor, SAMPLE_RATE // divisor
    blocks = len(pcm) // old + 1
    spectrum = np.fft.rfft(pcm, blocks * old)[: blocks * new // 2 + 1]
    return np.fft.irfft(spectrum, blocks * new) * (new / old)


def _trim(pcm: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(pcm) > _SILENCE * np.abs(pcm).max())
    return pcm[loud[0] : loud[-1] + 1]
