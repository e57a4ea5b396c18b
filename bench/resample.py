"""Resampling to 16 kHz on one core: ours against other resamplers, in speed and in error.

    python -m bench.resample [--out results.jsonl] [--rounds 8]

Times are of ten seconds of mono audio, in turns, the best of the rounds. Errors, in dB:

- ripple: largest deviation of the gain from 1 for tones up to 0.85 and up to 0.9 of the lower Nyquist frequency;
- alias: largest level at which a tone beyond the lower Nyquist frequency (beyond 1.05 of it) comes back, and of the
  images of tones up to 0.9 of it where the rate goes up, for a tone of level 0;
- noise, sweep, speech: largest error over the largest sample of a float64 windowed sinc of 180 dB. The signals end at
  0.85 of the lower Nyquist frequency; noise has a second band from 1.05 of it on.

soxr and av (PyAV, for FFmpeg's swresample) are measured where they are installed. Beside the file that --out names is a
table with the same name in Markdown.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from fractions import Fraction
from functools import partial

import numpy as np
import torch
import torchaudio
from torch import Tensor

from afn_model.audio.resample import resample
from afn_model.host import version
from bench.measure import main, milliseconds

RATES, TO = (48_000, 44_100, 22_050, 8_000), 16_000
SECONDS, BLOCK = 10, 1 << 17
RIPPLE_EDGES, ALIAS_EDGES = (0.85, 0.9), (1.0, 1.05)  # of the lower Nyquist frequency
KAISER = {"resampling_method": "sinc_interp_kaiser"}
FORMER = {**KAISER, "lowpass_filter_width": 64, "beta": 14.769656, "rolloff": 0.9475937}
# As in afn_model/audio/resample.py, for 180 dB.
ORACLE = {**KAISER, "lowpass_filter_width": 114, "beta": 18.88, "rolloff": 0.95}
SWRESAMPLE = {
    "swresample": "",
    "swresample, 128 taps": ":filter_size=128:cutoff=0.95:kaiser_beta=10",
}
Resampler = Callable[[Tensor, int], Tensor]  # (samples [n] float32, rate) -> [m] float32 at 16 kHz


def ours(signal: Tensor, rate: int) -> Tensor:
    return torch.cat(list(resample(signal.split(BLOCK), rate, TO)))


@contextmanager
def without_extension():
    kept = sys.modules.get("afn_kernels._cpu")
    sys.modules["afn_kernels._cpu"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["afn_kernels._cpu"]
        if kept:
            sys.modules["afn_kernels._cpu"] = kept


@contextmanager
def simd(level: str):
    before = os.environ.get("AFN_SIMD")
    os.environ["AFN_SIMD"] = level
    try:
        yield
    finally:
        del os.environ["AFN_SIMD"]
        if before is not None:
            os.environ["AFN_SIMD"] = before


def within(context: Callable, signal: Tensor, rate: int) -> Tensor:
    with context():
        return ours(signal, rate)


def former(signal: Tensor, rate: int) -> Tensor:
    """Frames times a dense matrix with torchaudio's filters: what this project did before."""
    common = math.gcd(rate, TO)
    source, target = rate // common, TO // common
    made = torchaudio.transforms.Resample(rate, TO, **FORMER)
    kernel, width = made.get_buffer("kernel")[:, 0], made.width
    repeats = max(1, 160 // target)
    step = source * repeats
    bank = torch.zeros(repeats, target, 2 * width + step)
    for repeat in range(repeats):
        bank[repeat, :, repeat * source : repeat * source + kernel.shape[-1]] = kernel
    bank = bank.flatten(0, 1)
    padded = torch.nn.functional.pad(signal, (width, width + step))
    outputs = -(-len(signal) * target // source)
    per_block = max(1, BLOCK // step)
    groups = -(-outputs // len(bank))
    frames = padded.unfold(0, bank.shape[1], step)[:groups]
    return torch.cat([block @ bank.T for block in frames.split(per_block)]).flatten()[:outputs]


def by_torchaudio(signal: Tensor, rate: int) -> Tensor:
    return torchaudio.functional.resample(signal, rate, TO, **FORMER)


def by_soxr(quality: str, signal: Tensor, rate: int) -> Tensor:
    import soxr

    return torch.from_numpy(soxr.resample(signal.numpy(), rate, TO, quality))


def by_swresample(options: str, signal: Tensor, rate: int) -> Tensor:
    import av
    from av.filter import Graph

    graph = Graph()
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
    convert, sink = graph.add("aresample", f"{TO}{options}"), graph.add("abuffersink")
    source.link_to(convert)
    convert.link_to(sink)
    graph.configure()
    pieces = []

    def pull() -> None:
        while True:
            try:
                pieces.append(sink.pull().to_ndarray().reshape(-1))
            except (av.BlockingIOError, av.EOFError):
                return

    done = 0
    for block in signal.split(BLOCK):
        frame = av.AudioFrame.from_ndarray(block.numpy()[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = rate, done
        done += len(block)
        source.push(frame)
        pull()
    source.push(None)
    pull()
    return torch.from_numpy(np.concatenate(pieces))


def candidates() -> tuple[dict[str, Resampler], dict[str, str]]:
    """Resamplers by name, and why others were skipped."""
    from afn_kernels import cpu

    found: dict[str, Resampler] = {}
    skipped: dict[str, str] = {}
    if reason := cpu.available():
        skipped["ours"] = reason
    else:
        from afn_kernels._cpu import simd_levels

        for level in simd_levels():
            if level != "portable16":
                found[f"ours, {level}"] = partial(within, partial(simd, level))
    found["ours, PyTorch"] = partial(within, without_extension)
    found |= {"before: matrix products": former, "torchaudio": by_torchaudio}
    if importlib.util.find_spec("soxr"):
        found |= {f"soxr {quality}": partial(by_soxr, quality) for quality in ("MQ", "HQ", "VHQ")}
    else:
        skipped["soxr"] = "the package soxr is not installed"
    if importlib.util.find_spec("av"):
        found |= {name: partial(by_swresample, options) for name, options in SWRESAMPLE.items()}
    else:
        skipped["swresample"] = "the package av is not installed"
    return found, skipped


def tones(rate: int) -> list[int]:
    """Frequencies in whole Hz up to the input's Nyquist frequency, no two with the same alias or image at 16 kHz."""
    taken: set[int] = set()
    found = []
    for hertz in torch.randperm(rate // 2 - 20, generator=torch.Generator().manual_seed(rate)).add(10).tolist():
        places = {folded(hertz), folded(rate - hertz)}
        if not places & taken:
            taken |= places
            found.append(hertz)
        if len(found) == 2000:
            break
    return sorted(found)


def folded(hertz: int) -> int:
    """Where a tone lies after sampling at 16 kHz."""
    return min(hertz % TO, -hertz % TO)


def response(resampler: Resampler, rate: int) -> dict[str, float]:
    """Ripple and aliases, from a second in the steady state of a sum of tones."""
    nyquist = min(rate, TO) / 2
    found = tones(rate)
    spectrum = torch.zeros(rate // 2 + 1, dtype=torch.complex128)
    phases = torch.rand(len(found), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 * torch.pi
    level = 0.2 / len(found) ** 0.5  # of one tone: the sum stays below full scale
    spectrum[found] = torch.polar(torch.full_like(phases, level * rate / 2), phases)
    period = torch.fft.irfft(spectrum, n=rate)
    out = resampler(period.repeat(3).float(), rate)[TO : 2 * TO]
    gains = (torch.fft.rfft(out.double()).abs() / (TO / 2) / level).tolist()
    result = {
        f"ripple_{edge}": max(abs(20 * math.log10(gains[hertz])) for hertz in found if hertz <= edge * nyquist)
        for edge in RIPPLE_EDGES
    }
    for edge in ALIAS_EDGES:
        if rate > TO:
            places = [folded(hertz) for hertz in found if hertz >= edge * nyquist]
        else:
            places = [folded(rate - hertz) for hertz in found if hertz <= (2 - edge - 0.1) * nyquist]
        result[f"alias_{edge}"] = max((20 * math.log10(max(gains[place], 1e-12)) for place in places), default=-240.0)
    return result


def signals(rate: int) -> dict[str, Tensor]:
    """Two seconds each, float32 values in float64."""
    nyquist, count = min(rate, TO) / 2, 2 * rate
    hertz = torch.fft.rfftfreq(count, 1 / rate, dtype=torch.float64)
    time = torch.arange(count, dtype=torch.float64) / rate
    generator = torch.Generator().manual_seed(0)
    low, high = hertz <= 0.85 * nyquist, hertz >= 1.05 * nyquist
    white = torch.fft.rfft(torch.randn(count, generator=generator, dtype=torch.float64))
    noise = torch.fft.irfft(white * (low | high), n=count)
    pitch = 2 * torch.pi * torch.cumsum(120 + 40 * torch.sin(2 * torch.pi * 0.7 * time), 0) / rate
    voice = sum(torch.sin(k * pitch) / k**1.2 for k in range(1, int(0.85 * nyquist / 160)))
    voice = voice * torch.sin(2 * torch.pi * 3 * time).clamp(min=0).sqrt()
    speech = torch.fft.irfft(torch.fft.rfft(voice) * low, n=count)
    sweep = torch.sin(torch.pi * 0.85 * nyquist * time**2 / 2)
    made = {"noise": noise, "sweep": sweep, "speech": speech}
    return {name: (0.5 * x / x.abs().max()).float().double() for name, x in made.items()}


def errors(resampler: Resampler, rate: int) -> dict[str, float]:
    """Largest error in dB below the largest sample, but for a tenth of a second at either end."""
    inside = slice(TO // 10, -TO // 10)
    found = {}
    for name, signal in signals(rate).items():
        expected = torchaudio.functional.resample(signal, rate, TO, **ORACLE)
        out = resampler(signal.float(), rate).double()[: len(expected)]
        error = float((out - expected[: len(out)])[inside].abs().max() / expected.abs().max())
        found[name] = 20 * math.log10(error)
    return found


def measure(rounds: int = 8, device: str = "cpu") -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    torch.set_num_threads(1)
    found, skipped = candidates()
    for name, reason in skipped.items():
        print(f"{name} skipped: {reason}")
    rows = []
    for rate in RATES:
        audio = 0.1 * torch.randn(SECONDS * rate, generator=torch.Generator().manual_seed(0))
        times = dict.fromkeys(found, math.inf)
        for _ in range(rounds):
            for name, one in found.items():  # its second and third call in a row: the first may have to fetch pages
                times[name] = min(times[name], milliseconds({name: partial(one, audio, rate)}, 2)[name])
        for name, one in found.items():
            row = {"resampler": name, "rate": rate, "times_real_time": round(SECONDS / times[name] * 1e3)}
            decibels = {**response(one, rate), **errors(one, rate)}
            rows.append(row | {key: float(f"{value:.3g}") for key, value in decibels.items()})
            print(*rows[-1].values(), flush=True)
    versions = {name: version(name) for name in ("soxr", "av", "torchaudio")}
    return {"benchmark": "resample", "to": TO, "skipped": skipped, "versions": versions, "rows": rows}


def table(record: dict) -> str:
    """The record in Markdown."""
    names = [name for name in record["rows"][0] if name not in ("resampler", "rate")]
    lines = ["# Resampling to 16 kHz, mono, on one core", ""]
    lines += [f"Errors in dB, defined in `bench/resample.py`. {record['date'][:10]}, one thread.", ""]
    for rate in dict.fromkeys(row["rate"] for row in record["rows"]):
        lines += [f"## From {rate:,} Hz", "", f"| resampler | {' | '.join(name.replace('_', ' ') for name in names)} |"]
        lines += ["|---" * (len(names) + 1) + "|"]
        for row in record["rows"]:
            if row["rate"] == rate:
                cells = [f"{row[name]:,}" if name == "times_real_time" else f"{row[name]:.3g}" for name in names]
                lines += [f"| {row['resampler']} | {' | '.join(cells)} |"]
        lines += [""]
    lines += [f"Not measured: {name} ({reason}).\n" for name, reason in record["skipped"].items()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main(__doc__, measure, rounds=8, table=table)
