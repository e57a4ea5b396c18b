"""What a stage is going to do, said before its first step, and what is probably not meant."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from afn_model.data.forecast import Forecast, forecast
from afn_model.data.index import Corpus
from afn_model.prompt.processor import AFNextProcessor
from afn_model.train.curriculum import Curriculum, Stage
from afn_model.train.optimiser import MOMENTS, learning_rate
from afn_model.train.quantise import coded_weights
from afn_model.train.run_layout import RunLayout

WEIGHT_BYTES = 4  # of a trained parameter in a checkpoint, beside its moments
LOW_RATE = 0.5  # share of ``lr`` that a stage should reach


@dataclass(frozen=True)
class Outlook:
    """Lines to print before the first step, and lines that say what is probably not meant."""

    lines: list[str]
    warnings: list[str]


def stage_forecast(curriculum: Curriculum, stage: Stage, processor: AFNextProcessor) -> Forecast:
    """How much a stage will read, with its own settings.

    Raises:
        ValueError: a dataset that is not there or has no index; a blend without samples.
    """
    kept = 1 - stage.eval.get("share", 0.0)  # held-out records are not trained on
    return forecast(
        {name: Corpus(curriculum.datasets[name]) for name in stage.blend},
        {name: kept * weight for name, weight in stage.blend.items()},
        processor,
        context=stage.context,
        max_audio=stage.max_audio,
        epochs=stage.epochs,
        steps=stage.steps,
        batch_tokens=stage.batch_tokens if stage.packed else 0,
        batch_prompts=stage.batch_prompts if not stage.packed else 0,
        chunk=stage.chunk,
        on_long=stage.on_long,
        speeds=curriculum.speeds,
    )


def outlook(curriculum: Curriculum, stage: Stage, processor: AFNextProcessor) -> Outlook:
    """What a stage will read and do; see ``afn_model.data.forecast`` for what is counted and what is estimated.

    Args:
        curriculum: of the datasets.
        stage: of it.
        processor: of the model that it starts from.

    Raises:
        ValueError: a dataset that is not there or has no index; a blend without samples.
    """
    found = stage_forecast(curriculum, stage, processor)
    lines = str(found).splitlines()
    further = stage.grpo.get("dynamic_sampling", 0) if stage.method == "grpo" else 0
    if further:
        lines.append(f"a step may draw {further} times more prompts (dynamic_sampling): an epoch may have fewer steps")
    if stage.minutes is not None:
        lines.append(f"it ends after {stage.minutes:g} minutes at the latest")
    # Where only a clock ends the stage, its number of steps is not known.
    rated, warnings = rates(stage, found.optimiser_steps) if math.isfinite(found.epochs) else ([], [])
    if found.steps_per_epoch <= 1 and found.samples_per_epoch > 1:
        warnings.append(
            f"a step ({found.step_size:,} {found.step_unit}) holds all {found.samples_per_epoch:,} samples of an epoch"
        )
    return Outlook([*lines, *rated], [*found.warnings, *warnings])


def rates(stage: Stage, steps: int) -> tuple[list[str], list[str]]:
    """Lines on the learning rate of a stage of so many steps, and warnings."""
    if steps < 1:
        return [], []
    warm = min(math.ceil(stage.warmup * steps), steps - 1)
    rate = learning_rate(stage.lr, stage.warmup, stage.schedule, warm / steps)
    line = f"learning rate: {rate:.3g} at the end of warm-up (step {warm:,}), {stage.schedule} from there"
    low = f"the learning rate reaches {rate:.3g} of {stage.lr:.3g}: the stage has too few steps"
    return [line], [low] if rate < LOW_RATE * stage.lr else []


def check_room(
    folder: Path, model: torch.nn.Module, layout: RunLayout, models: int, optimiser: str = "adamw"
) -> list[str]:
    """Warnings of a disk that may become full.

    Args:
        folder: of the stage.
        model: what trains has ``requires_grad``; sharded or not.
        layout: how many checkpoints are kept.
        models: whole models that the stage writes.
        optimiser: whose moments a checkpoint has.

    Raises:
        ValueError: not even one checkpoint and the models fit.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters()) + coded_weights(model)
    weights *= getattr(torch, layout.dtype).itemsize
    one, exported = (WEIGHT_BYTES + MOMENTS[optimiser]) * trained, models * weights
    there = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    need = f"a checkpoint takes {size(one)} and {models} x the model {size(exported)}, but {size(free)} are free"
    if free < exported + (one if not there else 0):
        raise ValueError(f"{folder}: {need}")
    # One more than are kept is on the disk while it is written.
    if free + there < exported + (layout.keep + 1) * one:
        less = "; --set keep=1 needs less" if layout.keep > 1 and free + there >= exported + 2 * one else ""
        return [f"{folder}: {need}, too little for keep + 1 = {layout.keep + 1} checkpoints{less}"]
    return []


def size(count: float) -> str:
    """Bytes to read: 3.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
