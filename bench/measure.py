"""What every benchmark shares: interleaved best-of-rounds timing, the folder of a machine, JSON lines."""

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

from afn_model.host import machine


def milliseconds(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Best time of each call over the rounds, one call of each per round, after one call of each to warm up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return {name: round(value, 3) for name, value in best.items()}


def folder_name(gpu: str) -> str:
    """The model's name in short: "NVIDIA H200" is h200, "NVIDIA H100 80GB HBM3" is h100."""
    short = re.search(r"(?:RTX )?[A-Z]{0,3}\d+\w*", gpu)
    return (short[0] if short else gpu).lower().replace(" ", "-")


def results(device: str) -> Path:
    """Where this machine's measurements are kept: bench/results/cpu, or a folder with the name of the GPU."""
    name = folder_name(torch.cuda.get_device_name()) if device == "cuda" else "cpu"
    return Path(__file__).with_name("results") / name


def main(
    description: str,
    measure: Callable[[int, str], dict],
    rounds: int,
    devices: tuple[str, ...] = ("cpu",),
    table: Callable[[dict], str] | None = None,
) -> None:
    """The command line of a benchmark: runs ``measure(rounds, device)`` and appends its record to ``--out``.

    The text that ``table`` makes of the record goes to the file of the same name in Markdown.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, help="append the record to this file, one JSON object per line")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", choices=devices, default=devices[0])
    args = parser.parse_args()
    record = {**measure(args.rounds, args.device), **machine(args.device)}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if table:
            args.out.with_suffix(".md").write_text(table(record), encoding="utf-8")
