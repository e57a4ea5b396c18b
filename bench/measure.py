"""What every benchmark shares: interleaved best-of-rounds timing, the machine in words, JSON lines."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
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
    """Where, when and with what a measurement was made."""
    gpu = {"gpu": torch.cuda.get_device_name(), "driver": driver()} if device == "cuda" else {}
    return {
        **gpu,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
    }


def version(package: str) -> str | None:
    """The installed version, or None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The version of NVIDIA's driver, or None where nvidia-smi does not say."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def folder_name(gpu: str) -> str:
    """The model's name in short: "NVIDIA H200" is h200, "NVIDIA H100 80GB HBM3" is h100."""
    short = re.search(r"(?:RTX )?[A-Z]{0,3}\d+\w*", gpu)
    return (short[0] if short else gpu).lower().replace(" ", "-")


def results(device: str) -> Path:
    """Where this machine's measurements are kept: bench/results/cpu, or a folder with the name of the GPU."""
    name = folder_name(torch.cuda.get_device_name()) if device == "cuda" else "cpu"
    return Path(__file__).with_name("results") / name


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
