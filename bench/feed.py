"""How fast audio is decoded, alone and by the trainer's whole loader, and what every stage of a curriculum needs.

    python -m bench.feed --out bench/results/cpu/feed.jsonl [--rounds 3]

Times are CPU seconds of the processes that decode, so that others on the machine disturb them little; of the loader
also by the clock. What a stage needs is arithmetic: tokens a second that a GPU is expected to train on, × 40 ms.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from afn_model.audio.decode import load_audio
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.data.index import build
from afn_model.data.loader import DataConfig, Loader
from afn_model.data.plan import TOKENS_PER_SECOND
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.tokenizer import make_tokenizer
from afn_model.train.curriculum import read_curriculum
from bench.measure import main
from bench.recordings import encode, ladder, sound_file

SECONDS, RECORDS, BINS = 60, 48, 4
KINDS = {
    "wav": {},
    "flac": {},
    "mp3": {"bit_rate": 128_000},
    "opus": {"bit_rate": 96_000},
    "m4a": {"bit_rate": 128_000},
}
RATES = (16_000, 44_100, 48_000)
WORKERS = 6  # of a rank, as the layouts for GPUs have it
# Tokens a second and GPU on an H100 that bench/results or the goals of the project expect, none of them measured there.
EXPECTED = {"pre-1": 18_000, "pre-2": 15_000, "mid-1": 8_300, "mid-2": 6_600, "cot-sft": 8_300}
CURRICULUM = Path(__file__).parents[1] / "afn_model" / "train" / "curricula" / "afnext.yaml"


def file_of(kind: str, rate: int, seconds: int = SECONDS) -> bytes:
    """A recording of tones and a little noise."""
    noise = 0.003 * np.random.default_rng(0).standard_normal((seconds * rate, 1))
    samples = (np.tile(ladder(30, rate, 1), (seconds // 30, 1)) + noise).astype(np.float32)
    # FFmpeg's encoder of flac chooses coefficients that are slow to decode; most files are libFLAC's.
    return sound_file(samples, rate, "FLAC") if kind == "flac" else encode(samples, rate, kind, **KINDS[kind])


def alone(rounds: int) -> list[dict]:
    """× real time on one core to 16 kHz, mono and int16, best of the rounds."""
    rows = []
    for kind in KINDS:
        for rate in RATES:
            if kind == "opus" and rate == 44_100:
                continue  # Opus has no such rate
            data, best = file_of(kind, rate), float("inf")
            for _ in range(rounds):
                begun = time.process_time()
                load_audio(data, dtype=torch.int16)
                best = min(best, time.process_time() - begun)
            rows.append({"format": kind, "rate": rate, "real_time": round(SECONDS / best)})
            print(rows[-1], flush=True)
    return rows


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def whole_loader(folder: Path, kind: str, rate: int, workers: int) -> dict:
    """Audio of a whole loader: hours a second by the clock, and × real time by its workers' CPU seconds."""
    name = f"{kind}-{rate}"
    if not (folder / f"{name}.jsonl").exists():
        (folder / f"{name}.{kind}").write_bytes(file_of(kind, rate))
        talk = [{"from": "human", "value": "<sound>\nWhat is heard?"}, {"from": "gpt", "value": "a tone"}]
        line = {"sound": f"{name}.{kind}", "duration": float(SECONDS), "conversations": talk}
        lines = [json.dumps({"id": str(i), **line}) for i in range(RECORDS)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        build(folder / f"{name}.jsonl")
    processor = AFNextProcessor(make_tokenizer(["What is heard? a tone system user assistant"] * 4, 300))
    data = DataConfig({"c": folder / f"{name}.jsonl"}, {"c": 1}, 0, 8192, BINS, 120.0, RECORDS)
    others = {child.pid for child in multiprocessing.active_children()}
    stream = iter(Loader(data, processor, workers=workers))
    next(iter(next(stream)))  # plans, and starts the workers
    # The last child that was started plans.
    children = sorted(child.pid for child in multiprocessing.active_children() if child.pid not in others)
    decoding = [pid for pid in children if pid != max(children)]
    begun, busy, seconds = time.perf_counter(), sum(map(cpu_seconds, decoding)), 0.0
    for step in stream:
        for micro in step:
            assert micro.batch is not None
            seconds += float(micro.batch.samples.sum()) / SAMPLE_RATE
        if time.perf_counter() - begun > 5:
            break
    wall, busy = time.perf_counter() - begun, sum(map(cpu_seconds, decoding)) - busy
    stream.close()
    found = {"audio_hours_per_s": round(seconds / 3600 / wall, 4), "real_time_per_core": round(seconds / busy)}
    row = {"format": kind, "rate": rate, "workers": workers, **found}
    print(row, flush=True)
    return row


def needs() -> list[dict]:
    """Seconds of audio that a rank decodes every second, were all tokens audio and each decoded once."""
    rows = []
    for stage in read_curriculum(CURRICULUM).stages:
        if stage.name in EXPECTED:
            each = EXPECTED[stage.name] / TOKENS_PER_SECOND
            rows.append({"stage": stage.name, "tokens_per_s": EXPECTED[stage.name], "audio_s_per_s": round(each)})
    return rows


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    torch.set_num_threads(1)
    speeds = alone(rounds)
    with tempfile.TemporaryDirectory(dir=os.environ.get("AFN_BENCH_FOLDER")) as name:
        files = (("flac", 16_000), ("mp3", 44_100), ("opus", 48_000))
        cases = [(kind, rate, workers) for kind, rate in files for workers in (1, 2)]
        loaded = [whole_loader(Path(name), *case) for case in cases]
    return {"benchmark": "feed", "alone": speeds, "loader": loaded, "needs": needs()}


def table(record: dict) -> str:
    """The record as Markdown."""
    speeds = {(row["format"], row["rate"]): row["real_time"] for row in record["alone"]}
    machine = f"{record['machine']}, {record['cores']} cores, load average {record['load']} when it ended"
    lines = [
        "# Decoding, and what training needs of it",
        "",
        "× real time of one core to 16 kHz mono, a minute of audio, by `python -m bench.feed`",
        f"({machine}).",
        "",
        "| format | " + " | ".join(f"{rate / 1000:g} kHz" for rate in RATES) + " |",
        "|---|" + "---|" * len(RATES),
    ]
    for kind in KINDS:
        lines.append(f"| {kind} | " + " | ".join(str(speeds.get((kind, rate), "–")) for rate in RATES) + " |")
    lines += [
        "",
        "The trainer's loader on bins of 8,192 tokens: index, tokeniser, decoding, packing and the way to the trainer.",
        "",
        "| format | workers | audio hours per second | × real time per CPU second of the workers |",
        "|---|---|---|---|",
    ]
    for row in record["loader"]:
        name = f"{row['format']}, {row['rate'] / 1000:g} kHz"
        lines.append(f"| {name} | {row['workers']} | {row['audio_hours_per_s']} | {row['real_time_per_core']} |")
    slow = min(row["real_time_per_core"] for row in record["loader"])
    fast = max(row["real_time_per_core"] for row in record["loader"])
    lines += [
        "",
        "What a rank needs if every token were audio (40 ms each), and the share of what its workers give:",
        f"{WORKERS} × {slow} for the slowest of these loaders, {WORKERS} × {fast} for the fastest. Tokens a second are",
        "the project's goals for an H100, not measurements of one. Ranks that share every sequence decode each",
        "micro-batch once among them, so a rank's need does not grow with their number.",
        "",
        "| stage | tokens/s a GPU | audio s/s a rank | share, slowest | share, fastest |",
        "|---|---|---|---|---|",
    ]
    for row in record["needs"]:
        wanted = row["audio_s_per_s"]
        shares = [f"{wanted / (WORKERS * speed):.0%}" for speed in (slow, fast)]
        lines.append(f"| {row['stage']} | {row['tokens_per_s']:,} | {wanted} | {shares[0]} | {shares[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__doc__, measure, rounds=3, table=table)
