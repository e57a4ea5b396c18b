"""The method of a stage: its settings, and what makes the losses of its steps."""

from __future__ import annotations

from typing import Any

from afn_distributed import SequenceParallel
from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_distributed.shard import gathered
from afn_model.prompt.processor import AFNextProcessor
from afn_model.train.asr import ASR, ASRSettings
from afn_model.train.codec import CodecSettings, CodecTraining
from afn_model.train.curriculum import Stage
from afn_model.train.dpo import DPO, DPOSettings
from afn_model.train.feature_cache import FeatureCache
from afn_model.train.grpo import GRPO, GRPOSettings
from afn_model.train.sft import SFT
from afn_model.train.stage_model import StageModel
from afn_model.train.talker import TalkerSettings, TalkerTraining
from afn_model.train.values import made

KINDS = {
    "grpo": GRPOSettings,
    "dpo": DPOSettings,
    "asr": ASRSettings,
    "codec": CodecSettings,
    "talker": TalkerSettings,
}
Settings = GRPOSettings | DPOSettings | ASRSettings | CodecSettings | TalkerSettings


def method_settings(stage: Stage) -> Settings | None:
    """The settings of a stage's method; None of SFT, which has none.

    Raises:
        ValueError: a setting that does not exist or is out of range.
    """
    if stage.method == "sft":
        return None
    given = getattr(stage, stage.method)
    if stage.method in ("grpo", "dpo"):
        given = {"max_seconds": stage.max_audio, **given}
    return made(KINDS[stage.method], given, f"{stage.name}: {stage.method}")  # pyright: ignore[reportReturnType]


def needs_reference(settings: Settings | None) -> bool:
    """Whether a method asks a frozen copy of the policy."""
    return isinstance(settings, (GRPOSettings, DPOSettings)) and settings.needs_reference


def method_of(
    stage: Stage,
    settings: Settings | None,
    stage_model: StageModel,
    processor: AFNextProcessor,
    process: Process,
    *,
    seed: int,
    sp_group: SequenceParallel | None = None,
) -> Any:
    """What makes the losses of a stage's steps.

    Args:
        stage: of a curriculum.
        settings: from ``method_settings``.
        stage_model: what it trains.
        processor: of the model.
        process: this rank.
        seed: of the run.
        sp_group: the ranks that share every sequence with this one, if any.
    """
    model, gather, collect = stage_model.model, processes.sum_over, processes.gather_objects
    if isinstance(settings, CodecSettings):
        return CodecTraining(model, settings, gather=gather, collect=collect, rank=process.rank)
    if isinstance(settings, TalkerSettings):
        return TalkerTraining(model, settings, gather=gather)
    if settings is None or isinstance(settings, ASRSettings):
        features = FeatureCache(model) if stage.cache_encoder else None
        options: dict[str, Any] = {"gather": gather, "collect": collect, "features": features, "sp_group": sp_group}
        if settings is None:
            return SFT(model, **options)
        options |= {"tokenizer": processor.tokenizer, "trains": stage_model.adapted.trains}
        return ASR(model, settings, seed=seed, rank=process.rank, **options)  # type: ignore[arg-type]
    reference = stage_model.reference_context if settings.needs_reference else None
    given: Any = model, processor, settings, reference
    if isinstance(settings, DPOSettings):
        return DPO(*given, context=stage.context, gather=gather, sharded=stage_model.sharded)
    whole = gathered if stage_model.sharded else None
    options = {"wanted": stage.batch_prompts, "gather": gather, "collect": collect, "gathered": whole}
    return GRPO(*given, context=stage.context, seed=seed, **options)
