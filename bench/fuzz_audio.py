"""Damaged recordings in nine formats: an error of one line or finite samples, never a crash, a hang or silence.

    python -m bench.fuzz_audio --out bench/results/cpu/fuzz_audio.jsonl [--rounds 1]

Each round damages 500 files in ways of its own. They are decoded in processes that a crash inside a codec ends, and an
alarm ends a file that takes longer than ``LIMIT``. Whatever is not as it should be raises, and nothing is written.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from bench.measure import main
from bench.recordings import encode, ladder, sound_file

FILES, WORKERS, LIMIT = 500, 2, 20  # seconds a file
SECONDS = 2.0
WHOLE = 0.95  # of the samples: a cut that took less took a tag or an index
KINDS = ("truncated", "header bits", "any bits", "noise", "cut out")


@lru_cache(maxsize=1)
def recordings() -> dict[str, bytes]:
    """Two seconds of tones and noise in nine formats."""
    rng, rate = np.random.default_rng(7), 48_000
    stereo = ladder(SECONDS, rate, 2) + 0.05 * rng.standard_normal((round(SECONDS * rate), 2)).astype(np.float32)
    mono = stereo[::3, :1]
    made: dict[str, Callable[[], bytes]] = {
        "wav": lambda: sound_file(mono, 16_000, "WAV", "PCM_16"),
        "au": lambda: sound_file(mono, 16_000, "AU", "FLOAT"),
        "flac": lambda: encode(stereo, rate, "flac"),
        "mp3": lambda: encode(stereo, rate, "mp3"),
        "vorbis": lambda: sound_file(stereo, rate, "OGG", "VORBIS"),
        "opus": lambda: encode(stereo, rate, "opus"),
        "m4a": lambda: encode(stereo, rate, "m4a"),
        "aac": lambda: encode(mono, 16_000, "adts"),
        "webm": lambda: encode(stereo, rate, "webm", options={"live": "1"}),
    }
    return {name: make() for name, make in made.items()}


def damaged(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """(kind of damage, bytes)."""
    kind = KINDS[rng.integers(len(KINDS))]
    if kind == "truncated":
        return kind, data[: rng.integers(1, len(data))]
    broken = bytearray(data)
    if kind in ("header bits", "any bits"):
        for _ in range(rng.integers(1, 9)):
            broken[rng.integers(min(len(data), 128) if kind == "header bits" else len(data))] ^= 1 << rng.integers(8)
        return kind, bytes(broken)
    first, length = int(rng.integers(len(data))), int(rng.integers(1, len(data) // 4))
    if kind == "noise":
        broken[first : first + length] = rng.bytes(len(broken[first : first + length]))
    else:
        del broken[first : first + length]
    return kind, bytes(broken)


def examine(kind: str, data: bytes, part: dict) -> str:
    """Decodes a damaged file: "refused", "warned" or "read".

    Raises:
        AssertionError: samples that are not finite, or silence, or a part returned as the whole.
    """
    import torch

    from afn_model.audio.decode import load_audio
    from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            pcm = load_audio(data, **part)
        except ValueError as error:
            refusal = str(error)
        else:
            refusal = None
    if refusal is not None:
        assert "\n" not in refusal, "an error of several lines"
        return "refused"
    assert pcm.ndim == 1
    assert pcm.numel() >= MIN_SAMPLES
    assert torch.isfinite(pcm).all(), "samples that are not finite"
    assert pcm.any(), "silence"
    if kind == "truncated" and not part and not said:
        assert pcm.numel() >= WHOLE * SECONDS * SAMPLE_RATE, f"{pcm.numel() / SAMPLE_RATE:.3f} s given as the whole"
    return "warned" if said else "read"


def work(first: int, last: int, seed: int) -> None:
    """Decodes the files of one process; says which one it is at before each."""
    import torch

    torch.set_num_threads(1)
    formats = list(recordings().items())
    for index in range(first, last, WORKERS):
        name, data = formats[index % len(formats)]
        kind, broken = damaged(data, np.random.default_rng((seed, index)))
        part = {"start": 1.2, "end": 1.5} if index % 5 == 0 else {}
        print(json.dumps({"file": index, "format": name, "damage": kind}), flush=True)
        signal.alarm(LIMIT)  # ends the process, whatever C code it is in
        start = time.perf_counter()
        outcome = examine(kind, broken, part)
        signal.alarm(0)
        print(json.dumps({"format": name, "outcome": outcome, "s": time.perf_counter() - start}), flush=True)


def outcomes(files: int, seed: int) -> Iterator[dict]:
    """What became of every file.

    Raises:
        RuntimeError: a process crashed, hung, or found what must not be.
    """
    command = [sys.executable, "-m", "bench.fuzz_audio", "worker", str(files), str(seed)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    root = Path(__file__).parents[1]
    workers = [subprocess.Popen([*command, str(first)], cwd=root, **pipes) for first in range(WORKERS)]
    for worker in workers:
        output, errors = worker.communicate()
        lines = [json.loads(line) for line in io.StringIO(output)]
        if worker.returncode:
            raise RuntimeError(f"exit {worker.returncode} at {lines[-1:]} of seed {seed}\n{errors[-2000:]}")
        yield from (line for line in lines if "outcome" in line)


def measure(rounds: int, device: str, files: int = FILES) -> dict:
    """Counts, by format, of the files that were refused, read with a warning, and read without."""
    found = [one for seed in range(rounds) for one in outcomes(files, seed)]
    table = {name: dict(Counter(one["outcome"] for one in found if one["format"] == name)) for name in recordings()}
    for name, counts in table.items():
        print(f"{name:7}", counts, flush=True)
    slowest = max(one["s"] for one in found)
    counts = {"files": len(found), "crashes": 0, "hangs": 0, "slowest_s": round(slowest, 3)}
    print(counts)
    return {"benchmark": "fuzz_audio", **counts, "outcomes": table}


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(int(sys.argv[4]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(__doc__, measure, rounds=1)
