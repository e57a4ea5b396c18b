"""Decoders of recordings: what they make of odd files, × real time on one core, what importing and installing costs.

    python -m bench.decode --out bench/results/cpu/decode.jsonl [--rounds 5]

Ours is FFmpeg through PyAV, the other one libsndfile through soundfile, with the same resampling behind it. An odd file
is right where every second of it is heard. Times are of one thread, files in memory, best of the rounds; a minute of
48 kHz stereo becomes 16 kHz mono. Then the tables of docs/audio.md are written from bench/results/cpu/decode.jsonl.
"""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.decode import load_audio
from afn_model.audio.ffmpeg import AudioFile
from afn_model.audio.resample import resample
from bench.decode_report import write_document
from bench.measure import main, milliseconds
from bench.odd_recordings import Odd, odd_files
from bench.recordings import encode, heard, ladder, sound_file

RATE, SECONDS = 48_000, 60
FORMATS = {
    "wav": ("wav", {}, 0.003),
    "flac": ("flac", {}, 0.003),
    "flac, a quieter room": ("flac", {}, 0.0001),
    "mp3, 128 kbit/s": ("mp3", {"bit_rate": 128_000}, 0.003),
    "opus, 96 kbit/s": ("opus", {"bit_rate": 96_000}, 0.003),
    "m4a (aac), 128 kbit/s": ("m4a", {"bit_rate": 128_000}, 0.003),
}


def by_soundfile(data: bytes) -> Tensor:
    """A recording at 16 kHz, mono, read by libsndfile."""
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = torch.from_numpy(samples).mean(1)
    return torch.cat(list(resample([mono], rate, 16_000)))


def verdict(load: Callable[[bytes], Tensor], odd: Odd) -> str:
    """Whether all of an odd file is heard: "whole", what there is of it, or "refused"."""
    try:
        pcm = load(odd.data)
    except (ValueError, RuntimeError):
        return "refused"
    seconds, tones = pcm.numel() / 16_000, [*heard(pcm), int(odd.seconds) - 1][: int(odd.seconds)]
    whole = abs(seconds - odd.seconds) <= odd.slack and tones == list(range(int(odd.seconds)))
    return "whole" if whole else f"{seconds:.2f} of {odd.seconds:g} s"


def odd_table() -> list[dict]:
    loads = {"av": load_audio, "soundfile": by_soundfile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            {"file": name, "seconds": odd.seconds} | {decoder: verdict(load, odd) for decoder, load in loads.items()}
            for name, odd in odd_files().items()
        ]


def recording(noise: float) -> np.ndarray:
    """[n, 2]: tones, and noise of its own in each channel."""
    samples = ladder(30, RATE, 2) + noise * np.random.default_rng(0).standard_normal((30 * RATE, 2))
    return np.tile(samples, (SECONDS // 30, 1)).astype(np.float32)


def decode_alone(data: bytes) -> int:
    """Samples decoded and mixed down."""
    return sum(block.pcm.numel() for block in AudioFile(data).blocks())


def speeds(rounds: int) -> list[dict]:
    """× real time by format: decoding alone, decoding and resampling, and the same by soundfile where it can."""
    rows = []
    for name, (kind, options, noise) in FORMATS.items():
        samples = recording(noise)
        # FFmpeg's encoder of flac chooses coefficients that are slow to decode; most files are libFLAC's.
        data = sound_file(samples, RATE, "FLAC") if kind == "flac" else encode(samples, RATE, kind, **options)
        calls = {"decode": lambda data=data: decode_alone(data), "load": lambda data=data: load_audio(data)}
        if kind != "m4a":
            calls["soundfile"] = lambda data=data: by_soundfile(data)
        times = milliseconds(calls, rounds)
        row = {"format": name, "kbit_s": round(len(data) * 8 / SECONDS / 1000)}
        rows.append(row | {call: round(SECONDS * 1000 / ms) for call, ms in times.items()})
        print(rows[-1], flush=True)
    return rows


def import_ms(package: str) -> float:
    """Milliseconds of the first import, numpy there already, in the best of five processes."""
    code = f"import numpy, time; t = time.perf_counter(); import {package}; print(1e3 * (time.perf_counter() - t))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(5)]
    return round(min(map(float, runs)), 1)


def installed_mb(package: str) -> float:
    """MB of the files that a package installs."""
    paths = [Path(str(file.locate())) for file in importlib.metadata.files(package) or []]
    return round(sum(path.stat().st_size for path in paths if path.exists()) / 1e6, 1)


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    import av
    import soundfile

    torch.set_num_threads(1)
    odd = odd_table()
    print(*(f"{row['file']}: {row['av']}, soundfile {row['soundfile']}" for row in odd), sep="\n", flush=True)
    costs = {name: {"import_ms": import_ms(name), "installed_mb": installed_mb(name)} for name in ("av", "soundfile")}
    print(costs, flush=True)
    versions = {"av": av.__version__, "soundfile": soundfile.__version__}
    versions |= {"libavcodec": ".".join(map(str, av.library_versions["libavcodec"]))}
    versions |= {"libsndfile": soundfile.__libsndfile_version__}
    return {"benchmark": "decode", "versions": versions, "odd": odd, "costs": costs, "speed": speeds(rounds)}


if __name__ == "__main__":
    main(__doc__, measure, rounds=5)
    write_document()
