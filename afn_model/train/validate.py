"""What is looked at before a stage trains: its settings, what it starts from, and whether all is as it was."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from afn_model.data.plan import Blend, Feed
from afn_model.scoring.judge import Endpoint
from afn_model.train.curriculum import Curriculum, Stage, known
from afn_model.train.grpo import GRPOSettings

MODEL = "model"


def check(curriculum: Curriculum, stage: Stage, world: int, sharing: int = 1) -> None:
    """Finds before the first stage what a later one would stumble over.

    Raises:
        ValueError: datasets that are not there or not indexed, steps that the ranks cannot share, settings of GRPO that
            do not exist or are out of range.
    """
    Blend(feed_of(curriculum, stage))
    if world % sharing:
        raise ValueError(f"stage {stage.name}: {world} ranks cannot be cut into groups of {sharing} for a sequence")
    if stage.bins % (world // sharing):
        many = f"{world} ranks" if sharing == 1 else f"{world // sharing} groups of {sharing} ranks"
        raise ValueError(f"stage {stage.name}: {stage.bins} sequences or prompts of a step for {many}")
    if stage.cache_encoder and world > 1:
        raise ValueError(f"stage {stage.name}: cache_encoder is for one rank, and there are {world}")
    known(stage.grpo, (f.name for f in fields(GRPOSettings)), f"stage {stage.name}: grpo")
    judge = stage.grpo.get("judge") or {}
    known(judge, (f.name for f in fields(Endpoint)), f"stage {stage.name}: judge")
    try:
        GRPOSettings(**stage.grpo)
        if judge:
            Endpoint(**judge)
    except (TypeError, ValueError) as error:
        raise ValueError(f"stage {stage.name}: {error}") from None


def feed_of(curriculum: Curriculum, stage: Stage) -> Feed:
    return Feed(
        datasets=curriculum.datasets,
        blend=stage.blend,
        seed=curriculum.seed,
        context=stage.context,
        bins=stage.bins,
        max_seconds=stage.max_audio,
        chunk=stage.chunk,
        prompts=stage.method == "grpo",
    )


def start_folder(stage: Stage, base: Path, out: Path) -> Path:
    """The model a stage starts from.

    Raises:
        ValueError: the earlier stage has not got that far.
    """
    if stage.start.stage == "base":
        return base
    folder = out / stage.start.stage / (MODEL if stage.start.at == 1 else f"{MODEL}-at-{stage.start.at:g}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"stage {stage.name} starts from {stage.start}, but there is no model in {folder}")
    return folder
