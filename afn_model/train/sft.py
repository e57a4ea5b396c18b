"""Supervised fine-tuning in stages: each stage trains some parts and leaves the others' bytes alone."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """One stage of a curriculum.

    Args:
        name: shown in the log.
        trains: names of the submodules that get gradients; every other parameter is frozen.
        seconds: wall-clock budget; the learning rate follows the share of it that is used up.
        steps: budget in optimiser steps; a stage ends at whichever budget is spent first.
        lr: peak learning rate: linear warm-up over ``warmup``, then cosine to zero.
        weight_decay: of matrices; vectors have none.
        clip: largest gradient norm.
    """

    name: str
    trains: tuple[str, ...]
    seconds: float = math.inf
    steps: float = math.inf
    lr: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self):
        if math.isinf(self.seconds) and math.isinf(self.steps):
            raise ValueError(f"stage {self.name!r} has neither a number of seconds nor of steps")


@dataclass(frozen=True)
class LogRow:
    """One optimiser step as it happened; ``progress`` is the share of the stage's budget used so far."""

    stage: str
    step: int
    seconds: float
    progress: float
    lr: float
    grad_norm: float
    losses: dict[str, float]


def learning_rate(stage: Stage, progress: float) -> float:
    """Linear warm-up, then half a cosine, as a function of the share of the budget that is used up."""
    if progress < stage.warmup:
        return stage.lr * max(progress / stage.warmup, 0.01)
    return stage.lr * 0.5 * (1 + math.cos(math.pi * (progress - stage.warmup) / (1 - stage.warmup)))


def train_stage(
    modules: nn.Module,
    stage: Stage,
    losses_of_next_batch: Callable[[], dict[str, Tensor]],
    on_step: Callable[[LogRow], None],
) -> None:
    """Runs one stage; the loss of a step is the sum of the named losses.

    Args:
        modules: a module whose submodules ``stage.trains`` names.
        stage: what to train and for how long.
        losses_of_next_batch: takes the next batch and returns its named scalar losses.
        on_step: called after every step.

    Raises:
        ValueError: a name in ``stage.trains`` that is no submodule; a loss or gradient that is not finite.
    """
    trained = select(modules, stage.trains)
    matrices = [p for p in trained if p.dim() > 1]
    vectors = [p for p in trained if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": stage.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=stage.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    modules.train()
    began = time.perf_counter()
    for step in itertools.count():
        elapsed = time.perf_counter() - began
        progress = max(step / stage.steps, elapsed / stage.seconds)
        if progress >= 1:
            break
        rate = learning_rate(stage, progress)
        for group in optimiser.param_groups:
            group["lr"] = rate
        losses = losses_of_next_batch()
        torch.stack(list(losses.values())).sum().backward()
        norm = float(nn.utils.clip_grad_norm_(trained, stage.clip))
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if not math.isfinite(norm + sum(values.values())):
            raise ValueError(f"stage {stage.name}, step {step}: losses {values}, gradient norm {norm}")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        on_step(LogRow(stage.name, step, time.perf_counter() - began, progress, rate, norm, values))
    modules.eval()


def select(modules: nn.Module, trains: tuple[str, ...]) -> list[nn.Parameter]:
    """Freezes everything, then frees the named submodules; returns the parameters that will be trained.

    A parameter that its module froze when it was made (the encoder's sinusoidal positions) stays frozen.
    """
    named = dict(modules.named_modules())
    unknown = [name for name in trains if name not in named]
    if unknown:
        raise ValueError(f"no submodule {', '.join(unknown)} to train; there are {', '.join(n for n in named if n)}")
    fixed = {id(p) for name, p in modules.named_parameters() if name.endswith("embed_positions.weight")}
    for parameter in modules.parameters():
        parameter.requires_grad_(False)
    trained = {id(p): p for name in trains for p in named[name].parameters() if id(p) not in fixed}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return list(trained.values())


class LogWriter:
    """Appends each row to a JSON-lines file and keeps the rows for plots."""

    def __init__(self, path: Path):
        self.rows: list[LogRow] = []
        self.file = path.open("w", encoding="utf-8")

    def __call__(self, row: LogRow) -> None:
        self.rows.append(row)
        self.file.write(json.dumps(asdict(row)) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
