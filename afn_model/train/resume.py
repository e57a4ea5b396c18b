"""How far a stage is, and how it goes on: from its last checkpoint, or with the weights of another run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from afn_model.data.loader import Position
from afn_model.train import fingerprint
from afn_model.train.checkpoint import Checkpoints, restore, training_state
from afn_model.train.curriculum import Stage
from afn_model.train.stage_model import StageModel

# A run resumes only if these are unchanged; the settings of the stage are compared one by one.
FIXED = {"model": "config", "start": "model it started from", "data": "datasets", "seed": "seed"}


@dataclass
class Progress:
    """How far a stage is.

    Args:
        step: optimiser steps done.
        seen: samples consumed.
        seconds: of training, by rank 0's clock.
        position: in the data, of the next step.
        exported: milestones written.
        evaluated: steps done at the last held-out evaluation.
        best_step, best_value: steps done at the best one, -1 before the first, and what it was decided by.
        since_best: evaluations since then.
        blends: what each measurement of a stage with ``reblend`` gave: step and seen when it was taken, losses of the
            held-out sets, β of each dataset before and after.
    """

    step: int = 0
    seen: float = 0.0
    seconds: float = 0.0
    position: Position = field(default_factory=Position)
    exported: list[float] = field(default_factory=list)
    evaluated: int = 0
    best_step: int = -1
    best_value: float | None = None
    since_best: int = 0
    blends: list[dict[str, Any]] = field(default_factory=list)

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Those of ``blends`` after which the blend was another one."""
        return [one for one in self.blends if one["after"] != one["before"]]

    @property
    def seen_before(self) -> float:
        """Samples consumed when the blend last changed."""
        return self.changes[-1]["seen"] if self.changes else 0.0

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        position = list(astuple(self.position))
        return {**vars(self), "position": position, "exported": list(self.exported), "blends": list(self.blends)}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Progress:
        """What ``facts`` has written."""
        position = Position(*facts["position"])
        found = cls(facts["step"], facts["seen"], facts["seconds"], position, facts["exported"])
        for name in ("evaluated", "best_step", "best_value", "since_best", "blends"):
            setattr(found, name, facts.get(name, getattr(found, name)))
        return found

    def share(self, stage: Stage, samples_per_epoch: int) -> float:
        """Share of the stage that is done, 0 to 1."""
        shares = [self.seen / (stage.epochs * samples_per_epoch)]
        if stage.steps:
            shares.append(self.step / stage.steps)
        if stage.minutes:
            shares.append(self.seconds / 60 / stage.minutes)
        return min(max(shares), 1.0)


def resume(
    checkpoints: Checkpoints,
    latest: Path,
    stage: Stage,
    now: dict[str, Any],
    stage_model: StageModel,
    allow_changes: Collection[str],
) -> tuple[Progress, list[str]]:
    """Loads weights and optimiser state of a checkpoint.

    Args:
        checkpoints: of the stage.
        latest: the checkpoint.
        stage: its settings now.
        now: the facts of this run, which those of the checkpoint are compared with.
        stage_model: is written to.
        allow_changes: settings that may have changed.

    Returns:
        How far the stage is, and what to say about it.

    Raises:
        ValueError: settings, model, data or seed have changed.
    """
    saved = checkpoints.facts(latest)
    if wrong := fingerprint.not_allowed(saved["stage"], stage, allow_changes):
        raise ValueError(f"{latest}: the settings changed since: {wrong}")
    for key, what in FIXED.items():
        if wrong := fingerprint.difference(saved.get(key), now[key]):
            raise ValueError(f"{latest}: the {what} changed since: {wrong}")
    tensors = training_state(stage_model.model, stage_model.optimiser)
    checkpoints.load(latest, tensors)
    restore(stage_model.model, stage_model.optimiser, tensors)
    progress = Progress.of(saved)
    notes = [f"goes on from step {progress.step} ({latest.name})"]
    notes.append(fingerprint.said(fingerprint.changed(saved["stage"], stage)))
    notes.append("" if saved["code"] == now["code"] else "the code has changed since")
    return progress, [note for note in notes if note]


def start_with_weights(
    checkpoints: Checkpoints, paths: Sequence[Path], stage_model: StageModel, stage: Stage, start: str
) -> list[str]:
    """Takes the trained weights of another run's checkpoint.

    Args:
        checkpoints: read it.
        paths: checkpoints, of which the first that is whole counts.
        stage_model: is written to.
        stage: its settings.
        start: fingerprint of the model that this run starts from.

    Returns:
        What to say about it.

    Raises:
        ValueError: all are damaged; it was trained from another model, and frozen weights that now train are not in it.
    """
    path = checkpoints.first_whole(paths)
    if path is None:
        raise ValueError(f"{paths[0]}: is damaged{', and so are those before it' if len(paths) > 1 else ''}")
    trained = {name for name, _ in stage_model.model.named_parameters()}
    facts = checkpoints.facts(path)
    read = checkpoints.load_weights(path, stage_model.model)
    if not trained <= read and facts["start"] != start:
        left = len(trained - read)
        raise ValueError(f"{path}: was trained from another model, and has not the {left} weights that were frozen")
    notes = [f"starts with the weights of {path}"]
    then, now = ((lora or {}).get("base") for lora in (facts["stage"].get("lora"), stage.lora))
    if then != now:
        old, new = (base or "16 or 32 bits" for base in (then, now))
        notes.append(f"they were trained on a base in {old}, and this one is in {new}")
    return notes
