"""Whether a batch that is killed goes on as if nothing had happened: every line once, with the same answers.

    python -m bench.batch_kills --out bench/results/cpu/batch_kills.jsonl [--kills 20]

A tiny model answers questions about recordings and about nothing, at random. The process that writes the answers gets
SIGKILL at random moments: when the file of answers has grown by a random number of bytes, and a random part of a line's
time later. Some kills leave a part of a line, as a machine that loses power may.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from afn_model.bootstrap.tiny import build
from afn_model.files import write_rows
from afn_model.infer.batch import answer_batch
from afn_model.infer.batch_replica import OneReplica, Replica
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams

TOKENS = 4  # of an answer


def prepare(folder: Path, lines: int, recordings: int) -> Path:
    """A file of requests, every second one about a recording."""
    rng, rows = np.random.default_rng(0), []
    for number in range(recordings):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(8_000), 16_000)
    for number in range(lines):
        heard = number % 2 == 0
        said = {"role": "user", "content": f"{'<sound>' if heard else ''}What is said in {number}?"}
        rows.append({"id": f"{number}", "messages": [said], "temperature": 1.0, "seed": number})
        if heard:
            rows[-1]["audios"] = [f"{number // 2 % recordings}.wav"]
    write_rows(folder / "in.jsonl", rows)
    return folder / "in.jsonl"


def answer_all(source: Path, target: Path) -> None:
    """What is killed."""
    torch.set_num_threads(1)  # a forked process has no others
    model, processor = build(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)  # else all answers would be the same few
    params = SamplingParams(max_new_tokens=TOKENS)

    def workers() -> OneReplica:
        def engine() -> Engine:
            return Engine(model, processor, deterministic=True, chunk=64)

        return OneReplica(Replica(engine, processor, folder=str(source.parent), defaults=params, together=3))

    answer_batch(source, target, workers, defaults=params)


def answers(target: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in target.read_bytes().splitlines()]


def killed(source: Path, target: Path, growth: int, delay: float, torn: int) -> bool:
    """Answers until the file has grown by so many bytes, kills it ``delay`` seconds later, and adds a part of a line.

    Returns:
        whether there was something to kill.
    """
    target.touch()
    size = target.stat().st_size
    child = multiprocessing.get_context("fork").Process(target=answer_all, args=(source, target))
    child.start()
    while child.is_alive() and target.stat().st_size <= size + growth:
        time.sleep(0.001)
    time.sleep(delay)
    assert child.pid is not None
    with suppress(ProcessLookupError):  # it is done, and nobody is left to kill
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    with target.open("ab") as file:
        file.write(target.read_bytes()[:torn])
    return child.exitcode == -signal.SIGKILL


def measure(folder: Path, kills: int, lines: int = 200, recordings: int = 6, seed: int = 0) -> dict[str, Any]:
    """Kills a batch so many times; how many lines were lost, answered twice, or differently."""
    source, whole, target = prepare(folder, lines, recordings), folder / "whole.jsonl", folder / "out.jsonl"
    began = time.monotonic()
    answer_all(source, whole)
    took = time.monotonic() - began
    expected = {row["id"]: row["answer"] for row in answers(whole)}
    rng, most = random.Random(seed), int(1.5 * whole.stat().st_size / (kills + 1))
    done, left = 0, []
    for _ in range(kills):
        torn = rng.choice((0, 1, 9, 40))
        done += killed(source, target, rng.randrange(most), rng.uniform(0, took / lines), torn)
        left.append(target.read_bytes().count(b"\n"))
    answer_all(source, target)
    found = answers(target)
    by_id = {row["id"]: row["answer"] for row in found}
    return {
        "lines": lines,
        "kills": done,
        "answered_at_kills": left,
        "different_answers": len(set(expected.values())),
        "lost": len(set(expected) - set(by_id)),
        "twice": len(found) - len(by_id),
        "changed": sum(by_id[name] != text for name, text in expected.items() if name in by_id),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), args.kills)
    print(json.dumps(row))
    if args.out:
        write_rows(args.out, [row])


if __name__ == "__main__":
    main()
