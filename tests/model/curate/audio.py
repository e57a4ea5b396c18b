"""Recordings for tests of what finds audio again, and what codecs and rooms do to them."""

import io

import av
import numpy as np
import soundfile
import torch
from scipy.signal import lfilter, resample_poly

from afn_model.audio.decode import load_audio
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.eval.copies.sounds import Sounds

SENTENCE = "the old river runs past seven quiet gardens where people answer letters in the evening"


def recordings(seed=0):
    """Speech of two voices, sounds of two seeds, noise, and a loop of notes, by name."""
    sounds, random = Sounds(seed), np.random.default_rng(seed + 1)
    said = SENTENCE.split()
    found = {}
    for number, variant in enumerate(("m3", "m3", "f2")):
        words = " ".join(said[number::3] + said[number::2])
        found[f"speech {number}"] = sounds.speech(words, variant=variant)
    for name in ("rain", "dog", "bell"):
        for number in range(2):
            found[f"{name} {number}"] = sounds.sound(name, 3.0)
    found["noise"] = (0.1 * random.standard_normal(5 * SAMPLE_RATE)).astype(np.float32)
    found["loop"] = np.tile(np.concatenate([sounds.note("guitar", 0.4) for _ in range(3)]), 3)
    return found


def mp3(pcm, rate=64_000):
    """Through MP3 at 64 kbit/s."""
    file, whole = io.BytesIO(), (pcm.clip(-1, 1) * 32_767).astype(np.int16)[None]
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE)
        stream.bit_rate, stream.layout = rate, "mono"
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=SAMPLE_RATE)
        for part in [*resampler.resample(frame), None]:
            container.mux(stream.encode(part))
    return file.getvalue()


def vorbis(pcm):
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="OGG", subtype="VORBIS")
    return file.getvalue()


def noisy(pcm, decibels):
    """With white noise so far below its power."""
    noise = np.random.default_rng(9).standard_normal(len(pcm))
    return (pcm + np.sqrt(np.mean(pcm**2)) * 10 ** (-decibels / 20) * noise).astype(np.float32)


CHANGES = {
    "mp3": lambda pcm: load_audio(mp3(pcm)).numpy(),
    "vorbis": lambda pcm: load_audio(vorbis(pcm)).numpy(),
    "8 kHz": lambda pcm: resample_poly(resample_poly(pcm, 1, 2), 2, 1).astype(np.float32),
    "quieter": lambda pcm: 0.05 * pcm,
    "brighter": lambda pcm: lfilter([1, -0.6], [1], pcm).astype(np.float32),
    "noise": lambda pcm: noisy(pcm, 40),
}


def tensor(pcm):
    return torch.from_numpy(np.ascontiguousarray(pcm))
