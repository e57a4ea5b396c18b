"""Truncated and bit-flipped recordings: a ValueError or finite samples, never a crash.

The files are decoded in worker processes, so that a crash inside a codec library is seen as one.
"""

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

FILES = 720
WORKERS = 2
FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", None), ("OGG", "OPUS"), ("MP3", None)]


def recordings():
    import soundfile

    rng = np.random.default_rng(7)
    for container, subtype in FORMATS:
        for rate, channels in ((16_000, 1), (48_000, 2)):
            time = np.arange(rate // 2)[:, None] / rate
            signal = 0.3 * np.sin(2 * np.pi * 330 * time * (1 + time)) + 0.05 * rng.standard_normal(
                (rate // 2, channels)
            )
            file = io.BytesIO()
            soundfile.write(file, signal.astype(np.float32), rate, format=container, subtype=subtype)
            yield container, file.getvalue()


def damaged(data, rng):
    """(kind of damage, bytes)."""
    kind = ["truncated", "header bits", "any bits", "noise", "cut out"][rng.integers(5)]
    if kind == "truncated":
        return kind, data[: rng.integers(1, len(data))]
    broken = bytearray(data)
    if kind in ("header bits", "any bits"):
        for _ in range(rng.integers(1, 9)):
            broken[rng.integers(min(len(data), 128) if kind == "header bits" else len(data))] ^= 1 << rng.integers(8)
        return kind, bytes(broken)
    first = int(rng.integers(len(data)))
    length = int(rng.integers(1, len(data) // 4))
    if kind == "noise":
        broken[first : first + length] = rng.bytes(len(broken[first : first + length]))
    else:
        del broken[first : first + length]
    return kind, bytes(broken)


def work(worker):
    import torch

    from afn_model.audio.decode import load_audio
    from afn_model.audio.frames import MIN_SAMPLES

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    whole = list(recordings())
    counts = {"refused": 0, "read": 0}
    for index in range(worker, FILES, WORKERS):
        container, data = whole[index % len(whole)]
        kind, broken = damaged(data, np.random.default_rng(index))
        part = {"start": 0.1, "end": 0.3} if index % 5 == 0 else {}
        print(json.dumps({"file": index, "container": container, "damage": kind}), flush=True)
        try:
            pcm = load_audio(broken, **part)
        except ValueError:
            counts["refused"] += 1
            continue
        assert pcm.ndim == 1
        assert pcm.numel() >= MIN_SAMPLES
        assert torch.isfinite(pcm).all()
        assert kind != "truncated" or part, (
            f"{container} file of {len(data)} bytes cut to {len(broken)} was read as whole"
        )
        counts["read"] += 1
    print(json.dumps(counts), flush=True)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_damaged_files_never_crash_and_never_give_non_finite_samples():
    root = Path(__file__).parents[3]
    command = [sys.executable, str(Path(__file__)), "worker"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace", "cwd": root}
    workers = [subprocess.Popen([*command, str(worker)], **pipes) for worker in range(WORKERS)]
    refused = read = 0
    for worker in workers:
        output, errors = worker.communicate(timeout=100)
        last = (output.splitlines() or ["nothing"])[-1]
        assert worker.returncode == 0, f"exit {worker.returncode} after {last}\n{errors[-2000:]}"
        counts = json.loads(last)
        refused, read = refused + counts["refused"], read + counts["read"]
    assert refused + read == FILES
    assert refused > FILES // 4
    assert read > FILES // 20


if __name__ == "__main__" and sys.argv[1:2] == ["worker"]:
    sys.path.insert(0, str(Path(__file__).parents[3]))
    work(int(sys.argv[2]))
