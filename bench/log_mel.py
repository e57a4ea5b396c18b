"""Thirty minutes of audio to log-mel features: ours against transformers' WhisperFeatureExtractor.

    python -m bench.log_mel [--out results.jsonl] [--rounds 7]

Both run in this process on the same cores, in turns, and the best of the rounds counts. Noise first, then other audio
(bench/ops/log_mel.py): speech, windows of 5 s of speech and 25 s of zeros, silence. AFN_SIMD=avx2 takes another level.
"""

from collections.abc import Callable

import torch

from bench.measure import main, milliseconds
from bench.ops.log_mel import padded, silence, speech

WINDOWS, SAMPLES = 60, 480_000


def recording() -> torch.Tensor:
    """[60, 480000] float32: noise that swells and fades."""
    swell = torch.linspace(0, 900, SAMPLES).sin()
    return 0.1 * torch.randn(WINDOWS, SAMPLES, generator=torch.Generator().manual_seed(0)) * swell


def ours(pcm: torch.Tensor, out: torch.Tensor | None = None) -> Callable[[], torch.Tensor]:
    import afn_kernels as ak

    return lambda: ak.log_mel(pcm, out=out, impl="cpu")


def theirs(pcm: torch.Tensor) -> Callable[[], torch.Tensor]:
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    windows = [window.numpy() for window in pcm]
    return lambda: extract(windows, sampling_rate=16_000, return_tensors="pt").input_features


def measure(rounds: int = 7, device: str = "cpu") -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    from afn_kernels import _cpu

    pcm = recording()
    samples = (pcm * 32767).clamp(-32768, 32767).to(torch.int16)
    out = torch.empty(WINDOWS, 128, SAMPLES // 160)
    others = {
        name: ours(signal(1, SAMPLES, "cpu").expand(WINDOWS, -1).clone(), out)
        for name, signal in {"ours, speech": speech, "ours, padded": padded, "ours, silence": silence}.items()
    }
    calls = {
        "transformers": theirs(pcm),
        "ours, reused pages": ours(pcm, out),
        "ours, int16, reused pages": ours(samples, out),
        "ours, fresh pages": ours(pcm),
    }
    found = milliseconds(calls | others, rounds)
    times = {name: found[name] for name in calls}
    mine, other = times["ours, reused pages"], times["transformers"]
    print(f"log_mel 30 min: ours {mine:.1f} ms, transformers {other:.1f} ms, ratio {other / mine:.1f}")
    for name, value in found.items():
        print(f"  {name:<26} {value:8.1f} ms  {other / value:6.1f} x")
    record = {"benchmark": "log_mel_30_min", "simd": _cpu.simd_level(), "milliseconds": times}
    record["reused pages, other audio"] = {name: found[name] for name in others}
    return {**record, "ratio": round(other / mine, 2)}


if __name__ == "__main__":
    main(__doc__, measure, rounds=7)
