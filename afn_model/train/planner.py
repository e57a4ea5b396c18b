"""``afn train --plan``: what a run will take before anything runs, and what to change where it does not fit."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from afn_model.config import ModelConfig, SpeechConfig
from afn_model.data.forecast import Forecast
from afn_model.files import read_json
from afn_model.prompt.processor import AFNextProcessor
from afn_model.speech.config import VoiceConfig, voice_config, voice_preset
from afn_model.train.account import Account, stage_units
from afn_model.train.curriculum import Curriculum, Stage
from afn_model.train.fp8 import check_fp8
from afn_model.train.host_memory import available
from afn_model.train.methods import METHODS, SPEECH, VOICE, check_kind
from afn_model.train.outlook import stage_forecast
from afn_model.train.rates import ASSUMED, Rates, described, read_rates
from afn_model.train.run_layout import RECOMPUTE, RunLayout, for_stage
from afn_model.train.speech_account import account_of
from afn_model.train.speech_time import time_of
from afn_model.train.step_time import StepSeconds, StepTime, band
from afn_model.train.typical import PER_SECOND, longest, typical
from afn_model.train.voice_plan import VoiceStepTime
from afn_model.weights.config_json import read_config
from afn_model.weights.speech import read_speech_config

ULYSSES, RINGS = (1, 2, 4, 7, 8, 14, 28), (1, 2, 4, 8, 16)
FEW = 0.5  # GB of frozen weights that are not worth a setting
FEWEST = 1024  # tokens of a rank; with fewer, kernels take about as long as their launches
# What may be offloaded, the least first.
OFFLOADS = (
    {"offload_optimiser": True},
    {"offload_optimiser": True, "offload_activations": True},
    {"offload_optimiser": True, "offload_activations": True, "offload_gradients": True},
)
AnyConfig = ModelConfig | SpeechConfig | VoiceConfig
COLUMNS = ("states", "gradients", "activations", "working", "reserve", "rollout", "total")


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes on a layout.

    Args:
        stage, layout, gpus: of the plan.
        memory: GB of the fullest GPU by column; "rollout" is the peak while GRPO samples.
        held: GB of its states by kind.
        limit: GB of a GPU.
        whole: whether every rank holds all frozen weights.
        micro_batches: of a step and rank; prompts in GRPO and DPO.
        tokens: of a typical micro-batch, before ranks share it.
        step: estimated seconds of a step, and their band from the rates' doubts.
        rate: tokens/s per GPU, and its band.
        forecast: how much there is to read; None without data.
        host: GB of the host by kind, of each rank.
        transfers: estimated seconds of a step in which the link to the host is busy.
        pcie: the rate that they are estimated from, B/s.
    """

    stage: Stage
    layout: RunLayout
    gpus: int
    memory: dict[str, float]
    held: dict[str, float]
    limit: float
    whole: bool
    micro_batches: int
    tokens: int
    step: StepSeconds
    band: tuple[float, float]
    rate: tuple[float, float, float]
    forecast: Forecast | None = None
    host: dict[str, float] = field(default_factory=dict)
    transfers: float = 0.0
    pcie: float = ASSUMED.pcie

    @property
    def peak(self) -> float:
        return max(self.memory["total"], self.memory.get("rollout", 0.0))

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit

    @property
    def hours(self) -> tuple[float, float, float] | None:
        """Estimated hours of the stage, low, middle and high; None where the number of steps is not known."""
        if self.forecast is None or not math.isfinite(self.forecast.epochs):
            return None
        steps, most = self.forecast.optimiser_steps, (self.stage.minutes or math.inf) / 60
        low, middle, high = (min(most, steps * s / 3600) for s in (self.band[0], self.step.total, self.band[1]))
        return low, middle, high


def check_layout(config: AnyConfig, stage: Stage, layout: RunLayout, gpus: int) -> None:
    """Whether the layout divides ranks, heads, context and a step.

    Raises:
        ValueError: one line: what does not divide what.
    """
    what, shared = f"stage {stage.name}", layout.ulysses * layout.ring if stage.packed else 1
    ways = f"ulysses {layout.ulysses} x ring {layout.ring}"
    if isinstance(config, SpeechConfig) and (stage.lora or stage.adapter):
        raise ValueError(f"{what}: adapters of method asr are not planned")
    if gpus % shared:
        raise ValueError(f"{what}: {ways} = {shared} ranks for a sequence do not divide {gpus} GPUs")
    if isinstance(config, ModelConfig) and shared > 1 and layout.ulysses > config.text.heads:
        raise ValueError(f"{what}: ulysses {layout.ulysses} is more than the {config.text.heads} heads")
    if shared > 1 and stage.context < shared * 2:
        raise ValueError(f"{what}: a context of {stage.context} tokens is too little for {shared} ranks ({ways})")
    if isinstance(config, ModelConfig) and stage.context > config.text.max_positions:
        raise ValueError(f"{what}: context {stage.context} is beyond the model's {config.text.max_positions} positions")
    if isinstance(config, ModelConfig) and layout.fp8:
        check_fp8(config.text)
    if gpus % (layout.shard or gpus):
        raise ValueError(f"{what}: shard {layout.shard} does not divide {gpus} GPUs")
    groups = gpus // shared
    if stage.bins % groups:
        kind = "sequences" if stage.packed else "prompts"
        many = f"{groups} ranks" if shared == 1 else f"{groups} groups of {shared} ranks"
        raise ValueError(f"{what}: {many} cannot share the {stage.bins} {kind} of a step evenly")


def plan_stage(
    config: AnyConfig,
    stage: Stage,
    layout: RunLayout,
    gpus: int,
    *,
    memory: float = 80.0,
    rates: Rates = ASSUMED,
    forecast: Forecast | None = None,
) -> StagePlan:
    """The plan of a stage.

    Args:
        config: of the model.
        stage: of a curriculum.
        layout: of this stage, from ``for_stage``.
        gpus: ranks, one a GPU.
        memory: GB of a GPU.
        rates: of GPU and links.
        forecast: of the stage's data, where there is some.

    Raises:
        ValueError: a layout that does not divide the ranks, the heads or the step.
    """
    check_layout(config, stage, layout, gpus)
    account = account_of(config, stage, layout, gpus, longest(stage), memory * 1e9)
    time = step_time(config, stage, layout, gpus, memory, rates, forecast)
    step, (low, high) = time.step(), band(time)
    tokens = time.tokens() / gpus
    return StagePlan(
        stage=stage,
        layout=layout,
        gpus=gpus,
        memory={name: size / 1e9 for name, size in account.total().items()},
        held={name: size / 1e9 for name, size in account.states().items()},
        limit=memory,
        whole=account.whole,
        micro_batches=time.micro_batches,
        tokens=time.micro_tokens,
        step=step,
        band=(low, high),
        rate=(tokens / high, tokens / step.total, tokens / low),
        forecast=forecast,
        host={name: size / 1e9 for name, size in account.host().items()},
        transfers=time.transfers(),
        pcie=rates.pcie,
    )


def check_host(config: AnyConfig, stage: Stage, layout: RunLayout, ranks: int, here: int) -> None:
    """Whether this machine has the memory for what its ranks offload.

    Args:
        config: of the model.
        stage, layout: of the run.
        ranks: of all machines.
        here: of this one.

    Raises:
        ValueError: one line: it has less.
    """
    host = account_of(config, stage, layout, ranks, longest(stage)).host()
    need, free = here * sum(host.values()), available()
    if need > free:
        kinds = ", ".join(f"{name} {here * size / 1e9:,.1f}" for name, size in host.items() if here * size >= 5e7)
        less = "" if stage.optimiser == "adamw8bit" else "; optimiser: adamw8bit takes less"
        raise ValueError(
            f"stage {stage.name}: what is offloaded takes {need / 1e9:,.1f} GB of the host ({kinds}), but "
            f"{free / 1e9:,.1f} are free{less}"
        )


def step_time(
    config: AnyConfig,
    stage: Stage,
    layout: RunLayout,
    gpus: int,
    memory: float,
    rates: Rates,
    forecast: Forecast | None = None,
) -> StepTime | VoiceStepTime:
    """The time model of a stage on typical data."""
    if isinstance(config, VoiceConfig):
        return VoiceStepTime(config, stage, layout, gpus, rates)
    mean = 0.0
    if forecast is not None and forecast.samples_per_epoch:
        mean = forecast.tokens_per_epoch / forecast.samples_per_epoch
    words = config.max_positions if isinstance(config, SpeechConfig) else 0
    micro = typical(stage, rates, mean, words)
    account = account_of(config, stage, layout, gpus, micro, memory * 1e9)
    assert isinstance(account, Account), "that of a voice is above"
    groups = gpus // account.load.plan.ranks
    return time_of(account, rates, stage.bins // groups, sum(micro.frames) / 2 / PER_SECOND)


def candidates(config: AnyConfig, stage: Stage, layout: RunLayout, gpus: int) -> Iterator[RunLayout]:
    """The layouts that a search looks at: how sequences and weights are shared, what is recomputed."""
    shared, modes = [(1, 1)], RECOMPUTE
    if isinstance(config, SpeechConfig):
        modes = tuple(mode for mode in RECOMPUTE if mode != "selective")  # which is "full" there
    elif isinstance(config, VoiceConfig):
        modes = ("none",) if stage.method == "codec" else ("none", "selective", "full")
    elif stage.packed:
        shared = [(u, r) for u in ULYSSES for r in RINGS if u <= config.text.heads and gpus % (u * r) == 0]
        shared = [(u, r) for u, r in shared if u * r == 1 or stage.context >= FEWEST * u * r]
        shared = [(u, r) for u, r in shared if stage.bins % (gpus // (u * r)) == 0]
    node, held = math.gcd(gpus, ASSUMED.node), (layout.frozen,)
    known = not isinstance(config, VoiceConfig)  # of a voice every rank has all that is frozen
    if known and gpus > 1 and stage_units(config, stage, layout, whole=True).frozen > FEW * 1e9:
        held = ("whole", "sharded") if layout.frozen == "auto" else (layout.frozen, "auto")
    for ulysses, ring in shared:
        for recompute in modes:
            for shard in sorted({node, gpus}):
                for frozen in held:
                    yield replace(
                        layout,
                        contexts={},
                        ulysses=ulysses,
                        ring=ring,
                        recompute=recompute,
                        shard=shard,
                        frozen=frozen,
                    )


def search(
    config: AnyConfig, stage: Stage, layout: RunLayout, gpus: int, *, memory: float = 80.0, rates: Rates = ASSUMED
) -> list[tuple[float, RunLayout]]:
    """Tokens/s per GPU of every layout that fits, best first; of equal ones that with less memory is first."""
    found = []
    most = longest(stage)
    for other in candidates(config, stage, layout, gpus):
        needs = account_of(config, stage, other, gpus, most, memory * 1e9).needs() / 1e9
        if needs <= memory:
            time = step_time(config, stage, other, gpus, memory, rates)
            found.append((time.tokens() / gpus / time.step().total, needs, other))
    found.sort(key=lambda one: (-round(one[0], 1), one[1]))
    return [(rate, other) for rate, _, other in found]


def changed(layout: RunLayout, other: RunLayout, gpus: int) -> dict[str, Any]:
    """The fields of a layout that the other changes and that matter on so many ranks."""
    found = {name: getattr(other, name) for name in ("recompute", "ulysses", "ring", "shard", "frozen", *OFFLOADS[-1])}
    return {
        name: value
        for name, value in found.items()
        if value != (layout.shard or gpus if name == "shard" else getattr(layout, name))
    }


def remedies(
    config: AnyConfig, stage: Stage, layout: RunLayout, gpus: int, *, memory: float = 80.0, rates: Rates = ASSUMED
) -> list[str]:
    """What makes a stage fit that does not, one concrete change a line, the least first."""
    options = {"memory": memory, "rates": rates}
    found = search(config, stage, layout, gpus, **options)
    if found:
        changes = changed(layout, found[0][1], gpus)
        return [f"{_settings(changes)}: {found[0][0]:,.0f} tokens/s per GPU"]
    lines = []
    for offload in OFFLOADS:
        if layout.compile and "offload_activations" in offload:
            continue
        if found := search(config, stage, replace(layout, **offload), gpus, **options):
            best = found[0][1]
            host = sum(account_of(config, stage, best, gpus, longest(stage), memory * 1e9).host().values()) / 1e9
            rate = f"{found[0][0]:,.0f} tokens/s per GPU and {host:,.0f} GB of the host for each"
            lines.append(f"{_settings(changed(layout, best, gpus))}: {rate}")
            break
    for text, other in _smaller(stage):
        found = search(config, other, layout, gpus, **options)
        if found:
            changes = changed(layout, found[0][1], gpus)
            lines.append(text + (f" and {_settings(changes)}" if changes else ""))
    for more in (n for n in (2, 4, 8, 16, 32, 64, 128) if n > gpus):
        if found := search(config, stage, layout, more, **options):
            changes = changed(layout, found[0][1], more)
            return [*lines, f"--gpus {more}" + (f" and {_settings(changes)}" if changes else "")]
    return lines


def _settings(changes: dict[str, Any]) -> str:
    shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in changes.items()}
    inside = ", ".join(f"{name}: {value}" for name, value in shown.items())
    return f"layout: {{{inside}}} in the stage, or {' '.join(f'--set {k}={v}' for k, v in shown.items())}"


def _smaller(stage: Stage) -> Iterator[tuple[str, Stage]]:
    """Stages that take less: moments in 8 bits, adapters, a base in few bits under them, shorter sequences."""
    if stage.optimiser == "adamw":
        yield "optimiser: adamw8bit", replace(stage, optimiser="adamw8bit")
    if "language_model" in stage.modules:
        adapters = dict(stage.lora or {"rank": 16, "alpha": 32})
        small = replace(stage, trains=("language_model",), lora=adapters)
        if not stage.lora:
            yield "trains: language_model, lora: {rank: 16, alpha: 32}", small
        if "base" not in adapters:
            text = "lora: {rank: 16, alpha: 32, base: nf4}" if not stage.lora else "base: nf4 in lora"
            yield text, replace(small, lora={**adapters, "base": "nf4"})
    if stage.method == "grpo" and stage.grpo.get("prompts", 4) > 1:
        yield "grpo: {prompts: 1}", replace(stage, grpo={**stage.grpo, "prompts": 1})
    context = 1 << (stage.context.bit_length() - 1)
    context = context // 2 if context == stage.context else context
    while context >= FEWEST:
        audio = min(stage.max_audio, float(context // PER_SECOND // 2))
        tokens = {"batch_tokens": stage.batch_tokens // context * context} if stage.packed else {}
        yield f"context: {context}, max_audio: {audio:g}", replace(stage, context=context, max_audio=audio, **tokens)
        context //= 2


def config_of(stage: Stage, base: str | Path | None) -> AnyConfig:
    """The model that a stage is planned for: without a base folder the full model, AF-Whisper or the full voice.

    Raises:
        ValueError: one line: a base that the stage's method does not train.
    """
    if not base:
        kinds = {SPEECH: SpeechConfig(), VOICE: voice_preset("af-next-talker")}
        return kinds.get(METHODS[stage.method].model, ModelConfig())
    kind = check_kind(base, stage.name, stage.method)
    if kind == VOICE:
        return voice_config(read_json(Path(base) / "config.json"))
    return read_speech_config(Path(base)) if kind == SPEECH else read_config(Path(base))


def plan(
    curriculum: Curriculum,
    layout: RunLayout,
    *,
    gpus: int = 1,
    memory: float = 80.0,
    base: str | Path | None = None,
    only: str | None = None,
    rates: Rates = ASSUMED,
) -> Iterator[str]:
    """The lines of the plan of a curriculum.

    Args:
        curriculum: its stages are planned.
        layout: of the run.
        gpus: one rank each.
        memory: GB of a GPU.
        base: model folder; without it as in ``config_of``, and nothing is said of the data.
        only: a single stage.
        rates: assumed, or in part measured.

    Raises:
        ValueError: one line, after the last: a layout that divides nothing, or stages that do not fit.
    """
    if gpus < 1 or not memory > 0:
        raise ValueError(f"--gpus {gpus} --gpu-memory {memory:g}: a number of GPUs and their GB are expected")
    stages = curriculum.stages if only is None else (curriculum[only],)
    configs = [config_of(stage, base) for stage in stages]
    processor = AFNextProcessor.from_pretrained(base) if base else None
    layouts = [for_stage(layout, stage) for stage in stages]
    for config, stage, here in zip(configs, stages, layouts, strict=True):
        check_layout(config, stage, here, gpus)
    yield (f"{curriculum.name}: {many(gpus)} of {memory:g} GB; an estimate from shapes and rates, nothing has been run")
    failed = []
    for config, stage, here in zip(configs, stages, layouts, strict=True):
        forecast, missing = _forecast(curriculum, stage, processor)
        found = plan_stage(config, stage, here, gpus, memory=memory, rates=rates, forecast=forecast)
        yield from lines(found)
        if missing:
            yield f"  steps and hours are left out: {missing}"
        if not found.fits:
            failed.append(stage.name)
            ways = remedies(config, stage, here, gpus, memory=memory, rates=rates)
            yield from (f"  fits with {way}" for way in ways)
            if not ways:
                yield "  nothing that the planner tries fits"
    for line in described(rates):
        yield from textwrap.wrap(line, 118, subsequent_indent="  ")
    if failed:
        raise ValueError(f"{', '.join(failed)}: more than {memory:g} GB of a GPU; the lines above say what fits")


def _forecast(
    curriculum: Curriculum, stage: Stage, processor: AFNextProcessor | None
) -> tuple[Forecast | None, str | None]:
    if processor is None:
        return None, "no --base, whose tokenizer counts the text"
    try:
        return stage_forecast(curriculum, stage, processor), None
    except ValueError as error:
        return None, str(error)


def lines(found: StagePlan) -> list[str]:
    """What a plan says."""
    stage, layout, step = found.stage, found.layout, found.step
    kind = f"{stage.method}{' LoRA' if stage.lora else ''}"
    filled = ", ".join(f"{name} {found.memory[name]:.1f}" for name in COLUMNS[:5])
    fits = "fits" if found.fits else "DOES NOT FIT"
    text = [f"{stage.name} ({kind}): {found.peak:.1f} of {found.limit:g} GB a GPU, {fits}"]
    held = ", ".join(f"{name} {size:.1f}" for name, size in found.held.items() if size >= 0.05)
    text.append(f"  GB: {filled}" + (f" (states: {held})" if held else ""))
    if "rollout" in found.memory:
        text.append(f"  GB while answers are sampled: {found.memory['rollout']:.1f}")
    shared = f", ulysses {layout.ulysses} x ring {layout.ring}" if stage.packed else ""
    shard = 1 if stage.method == "codec" else layout.shard or found.gpus
    text.append(
        f"  layout: {layout.dtype}{' with products in FP8' * layout.fp8}, recompute {layout.recompute}{shared}, "
        f"weights over {shard}"
        + (f", frozen ones {'whole' if found.whole else 'sharded'}" if found.held["frozen weights"] >= 0.05 else "")
    )
    if found.host:
        kinds = ", ".join(f"{name} {size:,.1f}" for name, size in found.host.items() if size >= 0.05)
        text.append(
            f"  GB of the host for each GPU: {sum(found.host.values()):,.1f} ({kinds}); {duration(found.transfers)} of "
            f"transfers a step at {found.pcie / 1e9:.3g} GB/s"
        )
    unit = "micro-batches" if stage.packed else "recordings" if METHODS[stage.method].model == VOICE else "prompts"
    low, middle, high = found.rate
    text.append(
        f"  a step and rank: {found.micro_batches:,} {unit} of about {found.tokens:,} tokens, {duration(step.total)} "
        f"({duration(found.band[0])} to {duration(found.band[1])}): {_parts(step)}"
    )
    text.append(f"  {middle:,.0f} tokens/s per GPU ({low:,.0f} to {high:,.0f})")
    if found.forecast is not None:
        text += _totals(found, found.forecast)
    return text


def _parts(step: StepSeconds) -> str:
    parts = {"kernels": step.compute, "messages": step.exposed, "sampling": step.sampling}
    parts |= {"optimiser and waiting": step.other, "audio not decoded in time": step.data}
    return ", ".join(f"{name} {value / step.total:.0%}" for name, value in parts.items() if value / step.total >= 0.005)


def _totals(found: StagePlan, forecast: Forecast) -> list[str]:
    heard = forecast.hours * forecast.samples / max(forecast.records, 1) * (1 - forecast.lost_share)
    text = [f"  the stage: {forecast.optimiser_steps:,} steps, {forecast.tokens:,} tokens, {heard:,.2f} hours of audio"]
    if found.hours:
        low, middle, high = (duration(3600 * hours) for hours in found.hours)
        text.append(f"  {middle} ({low} to {high}) on {many(found.gpus)}")
    else:
        text.append("  its clock ends it")
    return text


def duration(seconds: float) -> str:
    """A time to read: 0.12 s, 3.4 min, 56 h."""
    for unit, least in (("h", 3600), ("min", 60)):
        if seconds >= least:
            return f"{seconds / least:,.3g} {unit}" if seconds < 1000 * least else f"{seconds / least:,.0f} {unit}"
    return f"{seconds:.3g} s"


def many(gpus: int) -> str:
    return f"{gpus:,} GPU{'s' * (gpus != 1)}"


def print_plan(curriculum: Curriculum, layout: RunLayout, args: Any) -> None:
    """``afn train --plan``: prints the lines of a plan as they are made.

    Raises:
        ValueError: what ``plan`` and ``read_rates`` raise.
    """
    rates = read_rates(args.calibration) if args.calibration else ASSUMED
    options = {"gpus": args.gpus, "memory": args.gpu_memory, "base": args.base, "only": args.stage, "rates": rates}
    for line in plan(curriculum, layout, **options):
        print(line, flush=True)
