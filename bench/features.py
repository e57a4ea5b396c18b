"""Thirty minutes of audio through a feature extractor: ``ak.FeatureExtractor`` against transformers' own.

    python -m bench.features [--out results.jsonl] [--rounds 7]

Both run in this process on the same cores, in turns; the median of the rounds counts. "windows" are sixty clips of
30 s, as the processors of Music Flamingo and Audio Flamingo 3 cut a recording; "half empty" sixty of 17 s, padded to
30 s; "one row" the whole recording at once, as Whisper's long-form transcription takes it.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from afn_model.host import version
from bench.log_mel import SAMPLES, WINDOWS, recording
from bench.measure import main

SHORT = 17 * 16_000
LONG_FORM = {"truncation": False, "padding": "longest"}


def medians(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Milliseconds of each call, one of each per round, after one of each to warm up."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(found), 1) for name, found in times.items()}


def inputs() -> dict[str, tuple[list[np.ndarray] | np.ndarray, dict]]:
    """Name to what is given to the extractor: audio and options."""
    pcm = recording().numpy()
    return {
        "windows": (list(pcm), {}),
        "half empty": ([window[:SHORT] for window in pcm], {}),
        "one row": (pcm.reshape(-1), LONG_FORM),
    }


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    from transformers import WhisperFeatureExtractor

    import afn_kernels as ak
    from afn_kernels import _cpu

    extractors = {
        "transformers": WhisperFeatureExtractor(feature_size=128),
        "ours": ak.FeatureExtractor(feature_size=128),
    }
    shared = {"sampling_rate": 16_000, "return_tensors": "pt", "return_attention_mask": True}
    times, ratios = {}, {}
    for name, (audio, options) in inputs().items():
        calls = {
            f"{name}, {who}": lambda extract=extract, audio=audio, options=options: extract(audio, **shared, **options)
            for who, extract in extractors.items()
        }
        times |= medians(calls, rounds)
        theirs, ours = (times[f"{name}, {who}"] for who in extractors)
        ratios[name] = round(theirs / ours, 1)
        print(f"{name:<12} transformers {theirs:8.1f} ms  ours {ours:7.1f} ms  {ratios[name]:5.1f} x")
    record = {"benchmark": "features_30_min", "simd": _cpu.simd_level(), "milliseconds": times, "ratio": ratios}
    return {**record, "minutes": WINDOWS * SAMPLES / 16_000 / 60, "transformers": version("transformers")}


if __name__ == "__main__":
    torch.manual_seed(0)
    main(__doc__, measure, rounds=7)
