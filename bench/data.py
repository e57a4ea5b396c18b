"""The trainer's data pipeline on one core: a corpus of 10⁸ records, and what its planner leaves unused.

    python -m bench.data [--out results.jsonl] [--rounds 2]

The corpus is a stand-in: 65,536 records of the lengths that bench.packing draws, parts of one recording of noise, and
an index whose 10⁸ entries (1.2 GB, a temporary file) point at them over and over, each with its own place and seconds.
One entry in 65,536, where the lines begin again, has no line and is counted as a bad sample. Memory is in MB: resident,
with what is shared divided by its sharers (pss), and what is a process' own, beside what importing the loader takes.
"""

import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
from tokenizers import Tokenizer

from afn_model.data import plan
from afn_model.data.index import Corpus, build, folder_of
from afn_model.data.loader import DataConfig, Loader
from afn_model.data.records import check
from afn_model.files import write_json
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.tokenizer import make_tokenizer
from bench.measure import main
from bench.packing import CONTEXTS, mix

RECORDS, ENTRIES, LOOK_UPS = 65_536, 10**8, 20_000
CHUNK, CHUNKS = 65_536, 6  # the trainer's default, and how many of the first chunks are planned
BINS = 16
WORDS = ["a", "dog", "barks", "twice", "while", "somebody", "speaks", "about", "the", "weather", "far", "away"]


def write_corpus(folder: Path, context: int, records: int = RECORDS) -> Path:
    """An indexed corpus of the lengths of ``bench.packing.mix``, all of them parts of ``noise.wav``."""
    random_text = np.random.default_rng(1)
    path = folder / f"{context}.jsonl"
    with path.open("w") as file:
        for number, tokens in enumerate(mix(records, context).tolist()):
            words = min(int(20 + np.exp(random_text.normal(4.6, 0.8))), 2000, tokens - 13)
            seconds = round((tokens - words) / 25, 2)
            said = " ".join(WORDS[(number + i) % len(WORDS)] for i in range(max(words - 40, 1)))
            asked = {"role": "user", "content": "<sound>\nWhat is heard?"}
            messages = [asked, {"role": "assistant", "content": f"{number} {said}"}]
            audios = [{"path": "noise.wav", "start": 0.0, "end": seconds}]
            record = {"id": f"{number}", "axis": "skills", "audios": audios, "duration": seconds, "messages": messages}
            file.write(json.dumps(record) + "\n")
    build(path, check=check)
    return path


def repeat_index(path: Path, entries: int) -> None:
    """Makes the index of a corpus say that it has ``entries`` records: its lines over and over."""
    facts = Corpus(path).facts
    file = folder_of(path) / "entries"
    lines = file.read_bytes()[: 12 * facts.records]
    with file.open("wb") as out:
        whole, rest = divmod(entries + 1, facts.records)
        for _ in range(whole):
            out.write(lines)
        out.write(lines[: 12 * rest])
    seconds = facts.seconds * entries / facts.records
    many = replace(facts, records=entries, seconds=seconds)
    write_json(folder_of(path) / "facts.json", asdict(many))


def memory(pid: int) -> dict[str, float]:
    """MB of a process: resident, its share of what it has in common with others, and what is its own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    own = kilobytes["Private_Dirty"] + kilobytes["Private_Clean"]
    sizes = {"rss": kilobytes["Rss"], "pss": kilobytes["Pss"], "own": own}
    return {name: round(size / 1024, 1) for name, size in sizes.items()}


def look_up(path: Path) -> dict:
    """Microseconds to read the record, and the seconds alone, at random places of the index."""
    start = time.perf_counter()
    corpus = Corpus(path)
    opened = time.perf_counter() - start
    places = [i for i in random.Random(0).choices(range(len(corpus)), k=LOOK_UPS) if (i + 1) % RECORDS]
    times = []
    for read in (corpus.__getitem__, corpus.seconds):
        start = time.perf_counter()
        for place in places:
            read(place)
        times.append(round(1e6 * (time.perf_counter() - start) / len(places), 2))
    return {"open_ms": round(1e3 * opened, 2), "record_us": times[0], "seconds_us": times[1]}


def first_batch(config: DataConfig, tokenizer: Tokenizer, workers: int) -> dict:
    """Seconds to the first bin of one of 16 ranks, and the memory of all processes after eight bins."""
    bare = memory(os.getpid())
    processor = AFNextProcessor(tokenizer)
    start = time.perf_counter()
    stream = iter(Loader(config, processor, dp_size=BINS, workers=workers))
    first = next(iter(next(stream)))
    seconds = time.perf_counter() - start
    for _ in islice(stream, 7):
        pass
    children = [memory(child.pid) for child in multiprocessing.active_children()]
    here = memory(os.getpid())
    stream.close()
    return {
        "chunk": config.chunk,
        "workers": workers,
        "first_bin_s": round(seconds, 3),
        "clips_of_first_bin": len(first.samples),
        "imported_mb": bare,
        "trainer_mb": here,
        "workers_mb": children,
    }


def in_a_fresh_process(call: Callable[..., dict], *args) -> dict:
    """The answer of a call in a process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *args).result()


def planned(path: Path, context: int, processor: AFNextProcessor) -> dict:
    """Share of the bins' room that the samples of the first chunks fill, by chunk and in all, and the time it takes."""
    epoch = plan.FIRST_CHUNK * (2**CHUNKS - 1)  # as many samples as these chunks have
    weight = epoch / len(Corpus(path))
    config = DataConfig({"mix": path}, {"mix": weight}, 0, context, BINS, max_seconds=1800, chunk=CHUNK)
    blend, tokens, bins, slots, used = plan.Blend(config), 0, 0, 0, []
    start = time.perf_counter()
    for chunk in range(CHUNKS):
        made = plan.plan_chunk(blend, config, processor, chunk)
        here, of_chunk = len(made.cu) - 1, int(made.tokens.sum())
        used.append(round(of_chunk / (here * context), 5))
        tokens, bins, slots = tokens + of_chunk, bins + here, slots + made.steps * BINS
    seconds, samples = time.perf_counter() - start, epoch
    return {
        "context": context,
        "samples": samples,
        "bins": bins,
        "used": round(tokens / (bins * context), 5),
        "used_by_chunk": used,
        "empty_bins": round(slots / bins - 1, 5),
        "plan_s": round(seconds, 3),
        "samples_per_s": round(samples / seconds),
    }


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    tokenizer = make_tokenizer([" ".join(WORDS), "What is heard? system user assistant"] * 4, 400)
    processor = AFNextProcessor(tokenizer)
    with tempfile.TemporaryDirectory(dir=os.environ.get("AFN_BENCH_FOLDER")) as name:
        folder = Path(name)
        noise = np.random.default_rng(0).integers(-3000, 3000, 1800 * 16_000, dtype=np.int16)
        soundfile.write(folder / "noise.wav", noise, 16_000)
        rows = []
        for context in CONTEXTS:
            path = write_corpus(folder, context)
            rows.append(planned(path, context, processor))
            print(rows[-1], flush=True)
        path = folder / f"{CONTEXTS[0]}.jsonl"
        repeat_index(path, ENTRIES)
        looked = look_up(path)
        print(looked, flush=True)
        config = DataConfig({"mix": path}, {"mix": 1}, 0, CONTEXTS[0], BINS, 1800, CHUNK)
        firsts = []
        for workers in (0, 2):
            runs = [in_a_fresh_process(first_batch, config, tokenizer, workers) for _ in range(rounds)]
            firsts.append(min(runs, key=lambda run: run["first_bin_s"]))
            print(firsts[-1], flush=True)
    return {"benchmark": "data", "entries": ENTRIES, "look_up": looked, "first_bin": firsts, "planned": rows}


if __name__ == "__main__":
    main(__doc__, measure, rounds=2)
