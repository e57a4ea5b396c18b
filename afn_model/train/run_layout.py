"""The parallelism layout of a run, read from YAML: what changes speed and memory, but not what is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afn_model.checks import is_whole
from afn_model.train import values
from afn_model.train.methods import METHODS, VOICE, WHOLE
from afn_model.train.values import known, read_yaml, shown

if TYPE_CHECKING:
    from afn_model.train.curriculum import Stage

RECOMPUTE = ("none", "encoder", "selective", "full")


@dataclass(frozen=True)
class RunLayout:
    """The parallelism layout of a run, and what else changes speed and memory but not what is learnt.

    Args:
        dtype: of the computation, float32 or bfloat16; trained weights are float32 either way.
        fp8: whether the linear layers of the language model's blocks multiply in FP8 (e4m3, a scale for blocks of 128),
            forward and backward, and are gathered so.
        shard: ranks that share one copy of the weights (FSDP2), 0 for all of them; the other ranks replicate it.
        ulysses, ring: ranks that share one packed sequence, by heads inside a node and by blocks of keys across nodes,
            in SFT stages; those of GRPO and DPO are data parallel over all ranks.
        contexts: {tokens: fields} that replace these in SFT stages of at least so many tokens of context; of several
            the largest counts.
        frozen: weights that do not train: every rank keeps them whole, or they are sharded as those that train; auto
            keeps them whole up to a quarter of the GPU's memory.
        recompute: activations recomputed in the backward: none, encoder, selective or full.
        offload_optimiser: moments, and on one GPU float32 weights, are in host memory; a step runs on the GPU.
        offload_gradients: with it, on one GPU, the sums of the micro-batches' gradients are there too.
        offload_activations: the inputs of recomputed blocks wait for their backward in host memory; with
            recompute none there are none.
        compile: run the blocks through torch.compile.
        workers: processes that decode audio, per rank.
        keep: checkpoints kept per stage.
        keep_finished: of them, those kept once the stage is done: one to go on from where it is made longer, or none.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: minutes between checkpoints, whichever comes first.
        log_every: steps between log lines.
    """

    dtype: str = "float32"
    fp8: bool = False
    shard: int = 0
    ulysses: int = 1
    ring: int = 1
    contexts: dict[int, dict[str, Any]] = field(default_factory=dict)
    frozen: str = "auto"
    recompute: str = "none"
    offload_optimiser: bool = False
    offload_gradients: bool = False
    offload_activations: bool = False
    compile: bool = False
    workers: int = 1
    keep: int = 2
    keep_finished: int = 1
    checkpoint_every: int = 500
    checkpoint_minutes: float = 20.0
    log_every: int = 10

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"layout: dtype {shown(self.dtype)} is neither float32 nor bfloat16")
        if self.recompute not in RECOMPUTE:
            raise ValueError(f"layout: recompute {shown(self.recompute)} is none of {', '.join(RECOMPUTE)}")
        if self.frozen not in ("auto", "sharded", "whole"):
            raise ValueError(f"layout: frozen {shown(self.frozen)} is none of auto, sharded, whole")
        if self.keep_finished < 0:
            raise ValueError(f"layout: keep_finished is {self.keep_finished}; a number of checkpoints is expected")
        if min(self.ulysses, self.ring) < 1 or self.shard < 0 or self.workers < 0:
            raise ValueError(f"layout: ulysses {self.ulysses}, ring {self.ring}, shard {self.shard} are out of range")
        if min(self.keep, self.checkpoint_every, self.log_every) < 1:
            raise ValueError("layout: keep, checkpoint_every and log_every are at least 1")
        for name in ("offload_optimiser", "offload_gradients", "offload_activations", "compile", "fp8"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"layout: {name} is {shown(getattr(self, name))}; true or false is expected")
        if self.offload_gradients and not self.offload_optimiser:
            raise ValueError("layout: offload_gradients is for layouts with offload_optimiser: true")
        if self.offload_activations and self.compile:
            raise ValueError("layout: offload_activations and compile exclude each other; set one of them to false")
        if self.fp8 and self.compile:
            raise ValueError("layout: fp8 and compile exclude each other; set one of them to false")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"layout: checkpoint_minutes is {self.checkpoint_minutes}; a number above 0 is expected")
        for context, changes in values.mapping(self.contexts, "layout: contexts").items():
            if not is_whole(context) or not isinstance(changes, dict):
                raise ValueError(
                    f"layout: contexts: {shown(context)}: {shown(changes)} is no number of tokens with its fields"
                )
            known(changes, (f.name for f in fields(RunLayout) if f.name != "contexts"), f"layout: contexts: {context}")
            replace(self, contexts={}, **changes)


def read_layout(file: str | Path, changes: Mapping[str, Any] | None = None) -> RunLayout:
    """A layout from its YAML file, or by the name of one that comes with the package: cpu, gpu, gpu-offload, ..."""
    path = values.find(file, "layouts")
    changes, raw = dict(changes or {}), read_yaml(path)
    try:
        layout = _layout(raw)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        layout = _layout(raw | changes)
    except (ValueError, TypeError) as error:
        asked = ", ".join(f"{key}={shown(value)}" for key, value in changes.items())
        raise ValueError(f"--set {asked}: {error}") from None
    # What is asked for by name holds for every context; ulysses and ring are one decision.
    asked = {*changes, *(("ulysses", "ring") if {"ulysses", "ring"} & changes.keys() else ())}
    if "contexts" not in asked:
        kept = {n: {k: v for k, v in some.items() if k not in asked} for n, some in layout.contexts.items()}
        layout = replace(layout, contexts=kept)
    return layout


def _layout(raw: dict[str, Any]) -> RunLayout:
    known(raw, (f.name for f in fields(RunLayout)), "the layout")
    counts = ("shard", "ulysses", "ring", "workers", "keep", "keep_finished", "checkpoint_every", "log_every")
    found = raw | values.numbers(raw, counts, "layout", values.whole)
    found |= {"contexts": values.mapping(raw.get("contexts"), "layout: contexts")}
    return RunLayout(**found | values.numbers(raw, ("checkpoint_minutes",), "layout"))


def check_voice(layout: RunLayout, stage: Stage) -> None:
    """ValueError where a layout has something that codec and talker are not trained with."""
    what = f"stage {stage.name}: method {stage.method}"
    for name in ("compile", "offload_optimiser", "offload_activations"):
        if getattr(layout, name):
            raise ValueError(f"{what} is trained without {name}; layout: {{{name}: false}} is expected")
    if stage.method == "codec" and (layout.dtype, layout.recompute) != ("float32", "none"):
        has = f"dtype {layout.dtype} and recompute {layout.recompute}"
        raise ValueError(
            f"{what} computes in float32 and keeps its activations, not with {has}; give the stage "
            "layout: {dtype: float32, recompute: none}"
        )


def for_stage(layout: RunLayout, stage: Stage) -> RunLayout:
    """The layout with the changes for the stage's context, and then the stage's own."""
    known(stage.layout, (f.name for f in fields(RunLayout)), f"stage {stage.name}: layout")
    reached = [context for context in layout.contexts if context <= stage.context and stage.packed]
    here = layout.contexts[max(reached)] if reached else {}
    try:
        found = _layout({f.name: getattr(layout, f.name) for f in fields(RunLayout)} | here | stage.layout)
    except (ValueError, TypeError) as error:
        raise ValueError(f"stage {stage.name}: {error}") from None
    if stage.method == "asr" and found.ulysses * found.ring > 1:
        raise ValueError(
            f"stage {stage.name}: ulysses {found.ulysses} x ring {found.ring}, but method asr gives every rank whole "
            "sequences; 1 x 1 is expected"
        )
    if found.fp8 and METHODS[stage.method].model != WHOLE:
        raise ValueError(f"stage {stage.name}: method {stage.method} is trained without fp8; fp8: false is expected")
    if found.fp8 and (base := (stage.lora or {}).get("base")):
        raise ValueError(f"stage {stage.name}: fp8 multiplies weights of 16 bits, not a base in {base}; leave one out")
    if METHODS[stage.method].model == VOICE:
        check_voice(found, stage)
    return found
