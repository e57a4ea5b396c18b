"""Checks before a stage trains: its settings, its datasets and the model it starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from afn_model.data.augment import MADE, Augmentation
from afn_model.data.heldout import split
from afn_model.data.index import Corpus
from afn_model.data.plan import Blend, DataConfig
from afn_model.train.asr import ASRSettings
from afn_model.train.codec import CodecSettings
from afn_model.train.curriculum import Curriculum, Stage
from afn_model.train.dpo import DPOSettings
from afn_model.train.grading import Grader
from afn_model.train.grpo_settings import GRPOSettings
from afn_model.train.methods import PACKED
from afn_model.train.reblend import Reblend
from afn_model.train.talker import TalkerSettings
from afn_model.train.values import made, number, shown

MODEL = "model"


def check(curriculum: Curriculum, stage: Stage, world_size: int, sp_size: int = 1) -> None:
    """Finds before the first stage what a later one would stumble over.

    Raises:
        ValueError: datasets that are not there or not indexed, steps that the ranks cannot share, settings of a method
            that do not exist or are out of range, a speed or noise where it cannot be.
    """
    check_changes(curriculum, stage)
    blend = Blend(data_config(curriculum, stage))
    floor = stage.reblend.get("floor", Reblend.floor) if stage.reblend else 1.0
    for source in blend.order.sources:
        if source.draws and not replace(source, weight=floor * source.weight).draws:
            least = f"{floor:g} of a β of {source.weight:g} for {source.records} records"
            raise ValueError(f"stage {stage.name}: reblend: the floor leaves {source.name} no sample: {least}")
    if world_size % sp_size:
        raise ValueError(
            f"stage {stage.name}: {world_size} ranks cannot be cut into groups of {sp_size} for a sequence"
        )
    groups = world_size // sp_size
    if stage.bins % groups:
        many = f"{world_size} ranks" if sp_size == 1 else f"{groups} groups of {sp_size} ranks"
        has = f"{stage.bins} sequences (batch_tokens {stage.batch_tokens} / context {stage.context})"
        whole = f"a batch_tokens that is a multiple of {groups * stage.context}"
        if not stage.packed:
            has, whole = f"{stage.bins} prompts", f"a batch_prompts that is a multiple of {groups}"
        raise ValueError(f"stage {stage.name}: a step has {has}, which {many} cannot share evenly; give {whole}")
    if stage.cache_encoder and world_size > 1:
        raise ValueError(f"stage {stage.name}: cache_encoder is for one rank, and there are {world_size}")
    made(DPOSettings, stage.dpo, f"stage {stage.name}: dpo")
    made(CodecSettings, stage.codec, f"stage {stage.name}: codec")
    made(TalkerSettings, stage.talker, f"stage {stage.name}: talker")
    settings = made(GRPOSettings, stage.grpo, f"stage {stage.name}: grpo")
    try:
        Grader(settings, str)
    except ValueError as error:
        raise ValueError(f"stage {stage.name}: {error}") from None


def check_changes(curriculum: Curriculum, stage: Stage) -> None:
    """Finds what cannot have another speed, noise or rooms.

    Raises:
        ValueError: a dataset at another speed in a stage that is not packed; recordings of noise that are no dataset,
            have a speed, or are also held back.
    """
    said, fast = f"stage {stage.name}", [name for name in stage.blend if name in curriculum.speeds]
    if fast and not stage.packed:
        raise ValueError(f"{said}: dataset {fast[0]} has a speed, which is for stages of {' and '.join(PACKED)}")
    augment = made(ASRSettings, stage.asr, f"{said}: asr").augmentation()
    if augment is None or augment.noise is None or augment.noise.data in MADE:
        return
    data = augment.noise.data
    if data not in curriculum.datasets:
        names = ", ".join((*MADE, *curriculum.datasets))
        raise ValueError(f"{said}: asr: noise: data {shown(data)} is none of {names}")
    if data in curriculum.speeds:
        raise ValueError(f"{said}: asr: noise: dataset {data} has a speed, which recordings of noise cannot have")
    if stage.eval.get("share") and data in stage.blend:
        raise ValueError(f"{said}: asr: noise: a share of dataset {data} is held back, and would be heard as noise")


def heard(curriculum: Curriculum, stage: Stage) -> list[str]:
    """Names of the datasets whose recordings a stage hears: of its blend, and of noise."""
    noise = stage.asr.get("noise") or {}
    return [*stage.blend, *(name for name in [noise.get("data")] if name in curriculum.datasets and name not in MADE)]


def augmentation(curriculum: Curriculum, stage: Stage) -> Augmentation | None:
    """Noise and rooms of a stage, with the file of the recordings of noise; None for none."""
    found = made(ASRSettings, stage.asr, f"stage {stage.name}: asr").augmentation()
    if found is None or found.noise is None or found.noise.data in MADE:
        return found
    return replace(found, file=curriculum.datasets.get(found.noise.data))


def data_config(curriculum: Curriculum, stage: Stage) -> DataConfig:
    """What the loader reads for a stage, without what its ``eval`` holds back.

    Prompts may have shorter audio than ``max_audio``.
    """
    share, records = stage.eval.get("share"), {}
    if share:
        corpora = {name: Corpus(curriculum.datasets[name]) for name in stage.blend}
        records = {name: split(corpus, share, curriculum.seed)[0] for name, corpus in corpora.items()}
    own = {"grpo": stage.grpo, "dpo": stage.dpo}.get(stage.method, {}).get("max_seconds")
    longest = stage.max_audio if own is None else min(stage.max_audio, number(own, f"stage {stage.name}: max_seconds"))
    return DataConfig(
        datasets=curriculum.datasets,
        blend=stage.blend,
        seed=curriculum.seed,
        context=stage.context,
        bins=stage.bins,
        max_seconds=longest,
        chunk=stage.chunk,
        prompts_only=not stage.packed,
        bad_share=stage.bad_share,
        on_long=stage.on_long,
        records=records,
        speeds=curriculum.speeds,
        augment=augmentation(curriculum, stage),
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
