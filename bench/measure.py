"""What every benchmark shares: interleaved best-of-rounds timing, the machine in words, JSON lines."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch


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


def machine(device: str) -> dict:
    """Where and when a measurement was made."""
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        **gpu,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main(
    description: str, measure: Callable[[int, str], dict], rounds: int, devices: tuple[str, ...] = ("cpu",)
) -> None:
    """The command line of a benchmark: runs ``measure(rounds, device)`` and appends its record to ``--out``."""
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
