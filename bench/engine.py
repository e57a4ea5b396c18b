"""The engine's claims, each measured with a tiny float32 model on a CPU: what was asked for, and what came out.

    python -m bench.engine --out bench/results/cpu/engine.jsonl [--rounds 5]

Times are the best of the rounds after one to warm up; beside each ratio of wall-clock times stands that of CPU seconds,
which busy neighbours change less. A table of the last record is written beside the file.
"""

from __future__ import annotations

import gc
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import afn_kernels as ak
from afn_model import AFNext
from afn_model.audio.digests import DecodedRecording
from afn_model.audio.frames import HOP, SAMPLE_RATE, WINDOW, audio_tokens
from afn_model.config import AudioConfig, ModelConfig, TextConfig
from afn_model.infer.costs import Costs
from afn_model.infer.engine import Engine
from afn_model.infer.listen import Listening
from afn_model.infer.pages import PagePool
from afn_model.infer.request import Request
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.schedule import Scheduler
from afn_model.infer.sequence import Sequence
from afn_model.infer.tokens import PromptTokens
from afn_model.prompt.batch import Batch
from bench.goodput import SimulatedEngine, question
from bench.measure import main

NEW, MINUTES = 48, 30
# mel frames of the windows of each prompt
BATCHES = {
    "batch 1": [[1000]],
    "batch 8": [[1000]] * 8,
    "batch 8, ragged": [[3000, 3000, 123], [250], [1200], [3000], [40], [700], [3000, 900], [100]],
}


def row(claim: str, bar: str, value: float, holds: bool, **more: Any) -> dict:
    found = {"claim": claim, "bar": bar, "value": value, "holds": bool(holds)} | more
    print(found, flush=True)
    return found


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Best wall-clock and CPU seconds of each, in turn, after one to warm up."""
    best = dict.fromkeys(calls, (float("inf"), float("inf")))
    for turn in range(rounds + 1):
        for name, call in calls.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if turn:
                best[name] = min(best[name][0], spent[0]), min(best[name][1], spent[1])
    return best


# -- decoding against transformers


def decoding(rounds: int) -> list[dict]:
    """48 tokens, encoder and prefill included, and the 47 after the first alone. Ours computes the log-mel too."""
    import transformers

    from tests.model.reference import prompts, tiny_reference

    transformers.logging.set_verbosity_error()
    theirs, rows = tiny_reference("musicflamingo", 0), []
    theirs.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = AFNext.from_pretrained(folder)
    bars = dict(zip(BATCHES, (2, 4, 5), strict=True))
    for name, windows in BATCHES.items():
        p = prompts(windows, 0)
        samples = torch.as_tensor(p.mel_lengths) * HOP
        pcm = 0.1 * torch.randn(len(samples), WINDOW)
        pcm[torch.arange(WINDOW) >= samples[:, None]] = 0
        mel = ak.log_mel(pcm, n_mels=128)[..., :3000]
        kept = p.attention_mask.bool()
        bounds = F.pad(kept.sum(1).cumsum(0), (1, 0)).int()
        batch = Batch(p.input_ids[kept], bounds, pcm, samples, torch.tensor([len(one) for one in windows]))

        def peer(tokens: int, p=p, mel=mel) -> list[list[int]]:
            inputs = {"input_features": mel, "input_features_mask": p.mel_mask, "attention_mask": p.attention_mask}
            options = {"do_sample": False, "repetition_penalty": 1.2, "pad_token_id": 0}
            with torch.inference_mode():
                found = theirs.generate(input_ids=p.input_ids, max_new_tokens=tokens, **inputs, **options)
            return found[:, p.input_ids.shape[1] :].tolist()

        def own(tokens: int, batch=batch) -> list[list[int]]:
            return ours.generate(batch, tokens, repetition_penalty=1.2, stop_token_ids=())

        same = own(NEW) == peer(NEW)
        calls = {f"{who} {n}": partial(call, n) for who, call in (("ours", own), ("theirs", peer)) for n in (NEW, 1)}
        best = timed(calls, rounds)
        whole, whole_cpu = (best[f"theirs {NEW}"][at] / best[f"ours {NEW}"][at] for at in (0, 1))
        after, after_cpu = (
            (best[f"theirs {NEW}"][at] - best["theirs 1"][at]) / (best[f"ours {NEW}"][at] - best["ours 1"][at])
            for at in (0, 1)
        )
        rows.append(
            row(
                f"48 tokens against transformers, {name}",
                f">= {bars[name]} x",
                round(whole, 2),
                same and whole >= bars[name],
                cpu=round(whole_cpu, 2),
                after_the_first=round(after, 2),
                after_the_first_cpu=round(after_cpu, 2),
                seconds={call: round(found[0], 4) for call, found in best.items()},
                same_tokens=same,
            )
        )
    return rows


# -- models and requests of our own


def model_of(width: int, layers: int, max_positions: int = 1024) -> AFNext:
    torch.manual_seed(0)
    text = TextConfig(512, width, layers, heads=2, kv_heads=1, ffn=3 * width, max_positions=max_positions)
    audio = AudioConfig(width=width, layers=1, heads=2, ffn=2 * width)
    return AFNext(ModelConfig(audio=audio, text=text, audio_token_id=511, stop_token_ids=(0,))).eval()


def asked(engine: Engine, ids: list[int], limit: int, key: int = 0, **options: Any) -> Request:
    params = SamplingParams(max_new_tokens=limit, stop_token_ids=(), **options)
    return engine.submit(PromptTokens(list(ids)), params, key)


def continuous(rounds: int) -> list[dict]:
    """8 slots, exponential lengths; a static batch computes all of its rows until its longest answer ends."""
    rng, model = random.Random(5), model_of(64, 2)
    lengths = [1 + int(rng.expovariate(1 / 32)) for _ in range(256)]
    ids = [[rng.randrange(1, 500) for _ in range(20)] for _ in lengths]
    steps = {}

    def run(static: bool) -> None:
        engine = Engine(model, slots=8, pages=128)
        if static:
            for at in range(0, len(ids), 8):
                for one in ids[at : at + 8]:
                    asked(engine, one, max(lengths[at : at + 8]))
                engine.run()
        else:
            for one, length in zip(ids, lengths, strict=True):
                asked(engine, one, length)
            engine.run()
        steps[static] = engine.steps

    best = timed({"continuous": partial(run, False), "static": partial(run, True)}, min(rounds, 3))
    wall, cpu = (best["static"][at] / best["continuous"][at] for at in (0, 1))
    fewer = steps[True] / steps[False]
    shape = {"requests": len(lengths), "steps": {"static": steps[True], "continuous": steps[False]}}
    return [
        row("continuous against static batching, steps", ">= 2.5 x fewer", round(fewer, 2), fewer >= 2.5, **shape),
        row("continuous against static batching, time", ">= 2 x", round(wall, 2), wall >= 2, cpu=round(cpu, 2)),
    ]


class LongRecording:
    """Half an hour of noise as requests of a model of which only lengths matter."""

    def __init__(self):
        self.pcm = 0.1 * torch.randn(MINUTES * 60 * SAMPLE_RATE)
        self.model = model_of(64, 2, max_positions=65_536)

    def batch(self, minutes: int, question: int) -> Batch:
        windows = self.pcm[: minutes * 60 * SAMPLE_RATE].view(-1, WINDOW)
        ids = [1] * 40 + [511] * (audio_tokens(WINDOW) * len(windows)) + [question] * 30
        lengths = torch.tensor([0, len(ids)], dtype=torch.int32)
        samples = torch.full((len(windows),), WINDOW)
        return Batch(torch.tensor(ids), lengths, windows, samples, torch.tensor([len(windows)]))

    def first_token(
        self, engine: Engine, minutes: int, question: int, kept: DecodedRecording | None = None
    ) -> tuple[float, float, Request]:
        """Wall-clock and CPU seconds from the request to its first token; its windows are hashed, or those of ``kept``
        where they have not been."""
        batch, wall, cpu = self.batch(minutes, question), time.perf_counter(), time.process_time()
        if kept is not None:
            batch.digests = list(kept.digests)
        (request,) = engine.add(batch, SamplingParams(max_new_tokens=1, stop_token_ids=(), logprobs=0))
        engine.run()
        return time.perf_counter() - wall, time.process_time() - cpu, request


def recordings() -> list[dict]:
    """Questions about half an hour: the first, the second, one at every minute, and one asked of a stream."""
    made, rows = LongRecording(), []
    made.first_token(Engine(made.model), 1, 2)  # warms up
    engine = Engine(made.model)
    cold, cold_cpu, _ = made.first_token(engine, MINUTES, 3)
    encoded = engine.audio.windows_encoded
    warm, warm_cpu, second = min(
        (made.first_token(engine, MINUTES, 4 + n) for n in range(3)), key=lambda found: found[0]
    )
    again = engine.audio.windows_encoded - encoded
    rows.append(
        row(
            "second question about 30 minutes, its samples hashed again, time to its first token",
            ">= 50 x less, no window encoded",
            round(cold / warm, 1),
            cold >= 50 * warm and encoded == 60 and again == 0,
            cpu=round(cold_cpu / warm_cpu, 1),
            seconds={"first": round(cold, 3), "second": round(warm, 4)},
            windows_encoded=[encoded, again],
            tokens=len(second.prompt.ids),
            reused=second.answers[0].sequence.reused,
        )
    )
    engine, kept = Engine(made.model), DecodedRecording(made.pcm)
    cold_kept, cold_kept_cpu, _ = made.first_token(engine, MINUTES, 3, kept)  # hashes it
    warm, warm_cpu, second = min(
        (made.first_token(engine, MINUTES, 4 + n, kept) for n in range(3)), key=lambda found: found[0]
    )
    rows.append(
        row(
            "second question about 30 minutes that are kept decoded, time to its first token",
            ">= 50 x less, no window encoded",
            round(cold_kept / warm, 1),
            cold_kept >= 50 * warm and engine.audio.windows_encoded == 60,
            cpu=round(cold_kept_cpu / warm_cpu, 1),
            seconds={"first, hashed": round(cold_kept, 3), "second": round(warm, 4)},
            windows_encoded=engine.audio.windows_encoded,
            reused=second.answers[0].sequence.reused,
        )
    )
    engine, known, most = Engine(made.model), 0, 0
    for minutes in range(10, MINUTES + 1):
        _, _, request = made.first_token(engine, minutes, 3)
        heard = 40 + audio_tokens(WINDOW) * 2 * minutes
        computed = len(request.prompt.ids) - request.answers[0].sequence.reused
        most, known = max(most, computed - (heard - known) if known else 0), heard
    rows.append(
        row(
            "a recording of 10, 11, ... 30 minutes asked at each, tokens computed again",
            "<= a window and the question, 780",
            most,
            most <= 780 and engine.audio.windows_encoded == 60,
            windows_encoded=engine.audio.windows_encoded,
        )
    )
    return [*rows, streamed(made, cold, cold_cpu)]


def streamed(made: LongRecording, cold: float, cold_cpu: float) -> dict:
    """The same half an hour, heard five seconds at a time."""
    from tests.tiny import processor

    words = processor(max_seconds=60.0 * MINUTES)
    config = replace(made.model.config, audio_token_id=words.token_id("<sound>"))
    made.model.config, before = config, made.model.config
    try:
        engine = Engine(made.model)
        listening = Listening(engine, words)
        for pcm in made.pcm[: -7 * SAMPLE_RATE].split(5 * SAMPLE_RATE):
            listening.push(pcm)
            while engine.scheduler.running():
                engine.step()
        wall, cpu = time.perf_counter(), time.process_time()
        listening.push(made.pcm[-7 * SAMPLE_RATE : -1 * SAMPLE_RATE])
        request = listening.ask("What is said?", SamplingParams(max_new_tokens=1, stop_token_ids=()))
        engine.run()
        after, after_cpu = time.perf_counter() - wall, time.process_time() - cpu
        listening.close()
    finally:
        made.model.config = before
    return row(
        "first token after the last sample, streamed against uploaded",
        ">= 20 x less",
        round(cold / after, 1),
        cold >= 20 * after,
        cpu=round(cold_cpu / after_cpu, 1),
        seconds={"uploaded": round(cold, 3), "streamed": round(after, 4)},
        reused=request.answers[0].sequence.reused,
    )


def scheduling() -> list[dict]:
    """The scheduler alone at 256 sequences, and the gaps that half an hour leaves to 16 that decode."""
    rng, scheduler = random.Random(0), Scheduler(PagePool(20_000), slots=256)
    for _ in range(256):
        ids = [rng.randrange(1000) for _ in range(rng.randrange(200, 2000))]
        scheduler.add(Sequence(PromptTokens(ids), 100_000))
    taken = []
    gc.collect()
    gc.freeze()
    for _ in range(3300):
        wall, cpu = time.perf_counter(), time.thread_time()
        step = scheduler.plan()
        scheduler.launched(step)
        for sequence, draws in zip(step.rows, step.draws, strict=True):
            if draws:
                scheduler.drawn(sequence, 5)
        taken.append((1e6 * (time.perf_counter() - wall), 1e6 * (time.thread_time() - cpu)))
    gc.unfreeze()
    walls, cpus = (sorted(column[300:]) for column in zip(*taken, strict=True))
    median, p99 = walls[1500], walls[2970]
    costs = Costs.of(ModelConfig())
    engine = SimulatedEngine(costs, 2000)
    for number in range(16):
        engine.add(PromptTokens([number] * 500), 900, True)
    while len(engine.scheduler.decoding) < 16:
        engine.step()
    engine.longest = 0.0
    late = engine.add(question(0, MINUTES, 3), 1, True)
    while late in engine.asked:
        engine.step()
    return [
        row(
            "scheduler at 256 sequences, microseconds of a step",
            "median <= 100, p99 <= 1000",
            round(median, 1),
            median <= 100 and p99 <= 1000,
            p99=round(p99, 1),
            cpu=round(cpus[1500], 1),
            p99_cpu=round(cpus[2970], 1),
        ),
        row(
            "30 minutes arrive while 16 decode, longest gap in budgets (predicted)",
            "<= 2",
            round(engine.longest / costs.budget, 2),
            engine.longest <= 2 * costs.budget,
        ),
    ]


def modes(rounds: int) -> list[dict]:
    """What deterministic bits cost, and what drafts save."""
    rng, model = random.Random(3), model_of(64, 2)
    ids = [[rng.randrange(1, 500) for _ in range(rng.randrange(20, 300))] for _ in range(16)]

    def run(limit: int, **options: Any) -> list[list[int]]:
        engine = Engine(model, pages=200, **options)
        requests = [asked(engine, one, limit, logprobs=0) for one in ids]
        engine.run()
        return [request.answers[0].tokens for request in requests]

    calls = {"free": partial(run, 64), "deterministic": partial(run, 64, deterministic=True)}
    calls |= {"free, prompts": partial(run, 1), "deterministic, prompts": partial(run, 1, deterministic=True)}
    best = timed(calls, min(rounds, 3))
    whole = [best["deterministic"][at] / best["free"][at] for at in (0, 1)]
    prompts = best["deterministic, prompts"][1] / best["free, prompts"][1]
    said = run(64)
    counts = {}
    for name, wrong in (("right", 0), ("a token in 20 wrong", 20), ("a token in 5 wrong", 5)):
        engine, requests = Engine(model, pages=200), []
        for one, answer in zip(ids, said, strict=True):
            draft = [token if not wrong or place % wrong else 1 for place, token in enumerate(answer, 1)]
            params = SamplingParams(max_new_tokens=64, stop_token_ids=(), logprobs=0)
            requests.append(engine.submit(PromptTokens(one), params, 0, prediction=draft))
        engine.run()
        assert [request.answers[0].tokens for request in requests] == said, "a draft has changed an answer"
        counts[name] = round(engine.steps / 64, 3)
    return [
        row(
            "deterministic mode, time of 16 requests of 64 tokens over that without it",
            "measured",
            round(whole[0], 2),
            True,
            cpu=round(whole[1], 2),
            prompts_alone_cpu=round(prompts, 2),
        ),
        row("drafts, steps for each token; the same tokens", "measured", counts["right"], True, by_draft=counts),
    ]


def operations(runs: int = 800) -> dict:
    """Random operations on scheduler and pages; the process fails where anything is lost or wrong."""
    command = [sys.executable, "-m", "tests.model.infer.test_schedule", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.match(r"(\d+) operations", done.stdout)
    count = int(found[1]) if found else 0
    return row("random operations, nothing lost, every key where it belongs", ">= 100000", count, count >= 100_000)


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    rows = [*decoding(rounds), *continuous(rounds), *recordings(), *scheduling(), *modes(rounds), operations()]
    return {"benchmark": "engine", "rows": rows}


def table(record: dict) -> str:
    lines = [
        f"Tiny models, float32, {record['threads']} threads, {record['date'][:10]}: `python -m bench.engine`.",
        "",
        "| claim | bar | measured | in CPU seconds | holds |",
        "|---|---|---|---|---|",
    ]
    for one in record["rows"]:
        holds = "yes" if one["holds"] else "**no**"
        lines.append(f"| {one['claim']} | {one['bar']} | {one['value']:,} | {one.get('cpu', '')} | {holds} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__doc__, measure, rounds=5, table=table)
