"""Rates that a forecast of a step's time stands on: each assumed with a source and a doubt, or measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from afn_model.checks import is_number, shown

MEASURED = 0.05  # doubt of what was measured: another clock, another length


def rate(value: float, low: float, high: float, unit: str, source: str) -> float:
    """A field with an assumed value, the values that it may have in truth, its unit and its source."""
    return field(default=value, metadata={"low": low, "high": high, "unit": unit, "source": source})


@dataclass(frozen=True)
class Rates:
    """Of one GPU and its links; ``measured`` names the fields that are no assumptions."""

    matmul: float = rate(625e12, 540e12, 680e12, "FLOP/s", "assumed: 600 to 650e12 sustained of an H100's 989e12")
    attention: float = rate(585e12, 450e12, 640e12, "FLOP/s", "FlashAttention-3, packed causal 32K, forward, published")
    attention_backward: float = rate(426e12, 320e12, 480e12, "FLOP/s", "the same, backward")
    own_attention: float = rate(400e12, 280e12, 480e12, "FLOP/s", "assumed of our kernel, which a ring calls, forward")
    own_attention_backward: float = rate(260e12, 180e12, 330e12, "FLOP/s", "the same, backward")
    encoder_attention: float = rate(440e12, 330e12, 500e12, "FLOP/s", "FlashAttention-3, head dim 64, full, published")
    hbm: float = rate(2.7e12, 2.3e12, 3.0e12, "B/s", "assumed: 90 % of what copies reach of an H100's 3.35e12")
    launch: float = rate(8e-6, 5e-6, 15e-6, "s", "assumed: host time of a kernel; the GPU waits where it is slower")
    block: float = rate(1.0, 0.9, 1.15, "x", "time of a decoder block, forward and backward, over the model's")
    nvlink: float = rate(320e9, 250e9, 370e9, "B/s", "NCCL's all-to-all in a node; data sheet 450e9 each way")
    network: float = rate(46e9, 23e9, 48e9, "B/s", "NDR InfiniBand of one GPU, expected (NVIDIA/nccl-tests issue 290)")
    across: float = rate(200e9, 125e9, 300e9, "B/s", "gathers over nodes: seen on 256 H100 (NVIDIA/nccl issue 1218)")
    pcie: float = rate(
        50e9, 20e9, 58e9, "B/s", "assumed: page-locked copies, each way; 64e9 by the data sheet of PCIe 5"
    )
    message: float = rate(20e-6, 10e-6, 50e-6, "s", "assumed: to start a message")
    sms: float = rate(0.10, 0.15, 0.05, "share", "assumed: of the SMs, taken by NCCL while it runs beside kernels")
    waiting: float = rate(0.03, 0.10, 0.01, "share", "assumed: of a step, for the group with the dearest sequences")
    decoded: float = rate(400.0, 200.0, 1000.0, "s/s", "assumed: audio seconds that a worker reads in a second")
    token: float = rate(12e-3, 20e-3, 6e-3, "s", "assumed: a decoding step of GRPO's samples on the host")
    answer: float = rate(0.5, 1.0, 0.25, "share", "assumed: mean length of sampled answers, of the longest allowed")
    fp8: float = rate(
        1100e12, 800e12, 1350e12, "FLOP/s", "assumed of FP8 products in blocks of 128; DeepGEMM says 1350e12 at best"
    )
    node: int = 8
    peak: float = 989e12
    measured: tuple[str, ...] = ()

    @property
    def doubts(self) -> dict[str, tuple[float, float]]:
        """Two values that each field may have in truth."""
        found = {}
        for f in fields(self):
            if "low" in f.metadata:
                found[f.name] = f.metadata["low"], f.metadata["high"]
                if f.name in self.measured:
                    found[f.name] = getattr(self, f.name) * (1 - MEASURED), getattr(self, f.name) * (1 + MEASURED)
        return found


ASSUMED = Rates()
NAMES = tuple(f.name for f in fields(Rates) if "low" in f.metadata)


def read_rates(file: str | Path) -> Rates:
    """Rates with those that ``python -m bench.calibrate`` has measured.

    Raises:
        ValueError: one line: no such file, or what in it is no rate.
    """
    try:
        raw: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--calibration {file}: {error}; `python -m bench.calibrate --out {file}` writes it") from None
    found = raw.get("rates") if isinstance(raw, Mapping) else None
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f'--calibration {file}: {{"rates": {{name: number}}}} is expected')
    for name, value in found.items():
        if name not in NAMES or not (is_number(value) and 0 < value < math.inf):
            raise ValueError(
                f"--calibration {file}: {shown(name)}: {shown(value)} is no rate; there are {', '.join(NAMES)}"
            )
    return replace(ASSUMED, **{name: float(value) for name, value in found.items()}, measured=tuple(found))


def described(rates: Rates) -> list[str]:
    """Lines that say what was measured, and what was assumed."""
    units = {f.name: f.metadata["unit"] for f in fields(rates) if "unit" in f.metadata}
    values = {name: f"{name} {getattr(rates, name):.3g} {unit}" for name, unit in units.items()}
    lines = []
    if rates.measured:
        lines.append("measured: " + ", ".join(values[name] for name in rates.measured))
    lines.append("assumed: " + ", ".join(text for name, text in values.items() if name not in rates.measured))
    return lines
