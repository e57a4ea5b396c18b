"""A curriculum as data: stages read from one YAML file; values out of range are found before anything is loaded."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from afn_model.checks import is_number
from afn_model.data.speed import checked_speed
from afn_model.files import write_text
from afn_model.storage import located
from afn_model.train import values
from afn_model.train.eval_settings import eval_settings
from afn_model.train.lora_settings import ALL_LINEAR, check_lora
from afn_model.train.methods import METHODS, PACKED, VOICE
from afn_model.train.reblend import reblend_settings
from afn_model.train.values import known, read_yaml, shown

FORMER_NAMES = {"becomes": "release_name"}
SCHEDULES = ("cosine", "linear", "constant")
ON_LONG = ("cut", "drop", "error")
OPTIMISERS = ("adamw", "adamw8bit")


@dataclass(frozen=True)
class Start:
    """What a stage starts from: the base model, or an earlier stage after the share ``at`` of its steps."""

    stage: str = "base"
    at: float = 1.0

    def __str__(self) -> str:
        return self.stage if self.at == 1 else f"{self.stage} at {self.at:g}"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: also the name of its folder.
        method: "sft", "asr" (of an encoder with a decoder of its own), "grpo", "dpo", "codec" or "talker" (of a voice).
        trains: parts that get gradients: encoder, adaptor, language_model (with its head), or all; of asr encoder and
            decoder; of codec and talker that.
        max_audio: seconds of audio a recording may have.
        on_long: longer recordings are cut to that ("cut"), their samples left out ("drop"), or the run ends ("error").
        context: tokens of a packed sequence.
        start: "base", a stage, or {stage: name, at: share of that stage, above 0 to 1}.
        blend: how often each dataset is seen per epoch (β).
        batch_tokens: tokens of an optimiser step, all ranks together; a multiple of ``context``.
        batch_prompts: prompts of an optimiser step (GRPO), pairs of answers (DPO), or recordings (codec, talker).
        epochs, steps, minutes: how long; the stage ends at whichever comes first. A stage that ends by the clock is not
            reproducible.
        lr, warmup, schedule, betas, weight_decay, clip: AdamW. ``warmup`` is a share of the stage, ``clip`` the largest
            gradient norm.
        bad_share: share of the samples that may be bad; the run ends where more are.
        optimiser: "adamw", or "adamw8bit" with moments in 8 bits.
        rates: learning rates of parts that differ from ``lr``: encoder, adaptor, language_model (with its head), and
            of method codec its discriminators.
        layer_decay: the rate of a block over that of the block after it, above 0 to 1; of each part with blocks.
        lora: {rank, alpha, targets, ...} instead of training the own weights of the language model, or of the parts
            that targets names (``afn_model.train.lora_settings``).
        adapter: folder of an adapter in peft's format to go on from.
        cache_encoder: cache the features of a frozen encoder; for one rank, and recordings that come again.
        release_name: the released model that this stage gives, for reports (Captioner, Instruct, Think).
        eval: settings of ``afn_model.train.eval_settings.EvalSettings``.
        asr: settings of ``afn_model.train.asr.ASRSettings``.
        reblend: settings of ``afn_model.train.reblend.Reblend``, by which the blend follows held-out losses.
        grpo: settings of ``afn_model.train.grpo.GRPOSettings``.
        dpo: settings of ``afn_model.train.dpo.DPOSettings``.
        codec: settings of ``afn_model.train.codec.CodecSettings``.
        talker: settings of ``afn_model.train.talker.TalkerSettings``.
        layout: fields of ``RunLayout`` that this stage changes.
    """

    name: str
    trains: tuple[str, ...]
    blend: dict[str, float]
    method: str = "sft"
    max_audio: float = 30.0
    on_long: str = "cut"
    context: int = 8192
    start: Start = field(default_factory=Start)
    batch_tokens: int = 0
    batch_prompts: int = 0
    epochs: float = 1.0
    steps: int | None = None
    minutes: float | None = None
    lr: float = 1e-5
    warmup: float = 0.03
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    chunk: int = 65_536
    bad_share: float = 0.01
    optimiser: str = "adamw"
    rates: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    lora: dict[str, Any] | None = None
    adapter: str = ""
    cache_encoder: bool = False
    release_name: str = ""
    eval: dict[str, Any] = field(default_factory=dict)
    asr: dict[str, Any] = field(default_factory=dict)
    reblend: dict[str, Any] = field(default_factory=dict)
    grpo: dict[str, Any] = field(default_factory=dict)
    dpo: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    talker: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        def need(condition: bool, text: str) -> None:
            if not condition:
                raise ValueError(f"stage {self.name}: {text}")

        values.name(self.name, "stage")
        if self.name in values.TAKEN:
            taken = ", ".join(values.TAKEN)
            raise ValueError(f"stage {self.name}: another name is needed; {taken} have a meaning of their own")
        need(self.method in tuple(METHODS), f"method {shown(self.method)} is none of {', '.join(METHODS)}")
        parts = METHODS[self.method].parts
        unknown = [part for part in self.trains if not isinstance(part, str) or part not in parts]
        need(
            not unknown and len(self.trains) > 0, f"trains {shown(list(self.trains))}; the parts are {', '.join(parts)}"
        )
        need(len(self.blend) > 0, "the blend names no dataset")
        need(self.context >= 16, f"context {self.context} is below 16 tokens")
        need(0 < self.max_audio < math.inf, f"max_audio {self.max_audio} is no number of seconds")
        need(self.on_long in ON_LONG, f"on_long {shown(self.on_long)} is none of {', '.join(ON_LONG)}")
        need(self.minutes is None or 0 < self.minutes < math.inf, f"minutes {self.minutes} is no length of time")
        for key in ("epochs", "steps", "clip", "chunk"):
            value = getattr(self, key)
            need(value is None or value > 0, f"{key} is {value}; a number above 0 is expected")
        endless = math.isinf(self.epochs) and self.steps is None and self.minutes is None
        need(not endless, "no number of epochs, steps or minutes")
        need(0 < self.lr < math.inf, f"lr is {self.lr:g}; a number above 0 is expected")
        need(0 <= self.warmup < 1, f"warmup is {self.warmup:g}; a share of the stage is expected, 0 to below 1")
        need(0 <= self.weight_decay < math.inf, f"weight_decay is {self.weight_decay:g}; 0 or more is expected")
        need(0 <= self.bad_share <= 1, f"bad_share is {self.bad_share:g}; a share from 0 to 1 is expected")
        need(self.schedule in SCHEDULES, f"schedule {shown(self.schedule)} is none of {', '.join(SCHEDULES)}")
        pair = len(self.betas) == 2 and all(is_number(beta) and 0 <= beta < 1 for beta in self.betas)
        need(pair, f"betas {shown(list(self.betas))} are not two numbers from 0 to below 1")
        if self.packed:
            whole = self.batch_tokens > 0 and self.batch_tokens % self.context == 0
            need(whole, f"batch_tokens {self.batch_tokens} is no multiple of the context {self.context}")
        else:
            need(self.batch_prompts > 0, f"batch_prompts {self.batch_prompts}: a stage of {self.method} counts prompts")
        frozen = "encoder" not in self.modules and self.method == "sft"
        need(frozen or not self.cache_encoder, "cache_encoder is for SFT with a frozen encoder")
        need(self.optimiser in OPTIMISERS, f"optimiser {shown(self.optimiser)} is none of {', '.join(OPTIMISERS)}")
        rated = ("discriminators",) if self.method == "codec" else ()
        for part, rate in self.rates.items():
            trained = part in rated or (part in ("encoder", "adaptor", "language_model") and part in self.modules)
            need(trained, f"rates: {shown(part)} is no part that trains")
            need(0 < rate < math.inf, f"rates: {part} is {rate:g}; a number above 0 is expected")
        need(0 < self.layer_decay <= 1, f"layer_decay is {self.layer_decay:g}; above 0 to 1 is expected")
        for method in ("asr", "codec", "talker"):
            given = getattr(self, method)
            need(not given or self.method == method, f"{method} has settings for stages of method {method}")
        if METHODS[self.method].model == VOICE:
            adapted = bool(self.lora or self.adapter)
            need(not adapted, f"a stage of {self.method} has no adapters")
            need(self.layer_decay == 1, f"layer_decay is not for {self.method}")
        eval_settings(self.eval, f"stage {self.name}: eval", self.method)
        need(not self.reblend or self.packed, f"reblend is for stages of {' and '.join(PACKED)}, not {self.method}")
        reblend_settings(self.reblend, f"stage {self.name}: reblend", self.blend)
        if self.lora is not None:
            check_lora(self.lora, self.modules, bool(self.adapter), self.method, f"stage {self.name}: lora")

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the model's submodules that train."""
        parts = dict.fromkeys(module for part in self.trains for module in METHODS[self.method].parts[part])
        return (*parts, "ctc_head") if self.asr.get("ctc") else tuple(parts)

    @property
    def packed(self) -> bool:
        """Whether it is trained on packed sequences, whose tokens a step counts; otherwise a step counts prompts."""
        return METHODS[self.method].packed

    @property
    def bins(self) -> int:
        """Packed sequences, or prompts, of an optimiser step."""
        return self.batch_tokens // self.context if self.packed else self.batch_prompts


@dataclass(frozen=True)
class Curriculum:
    """Stages in order, the datasets they blend, the seed of everything random, and the datasets' speeds but 1."""

    name: str
    stages: tuple[Stage, ...]
    datasets: dict[str, str | Path]
    seed: int = 0
    speeds: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"no stage {name!r}; there are {', '.join(stage.name for stage in self.stages)}")

    def milestones(self, name: str) -> list[float]:
        """Shares of a stage, below 1, after which a later stage starts from it."""
        return sorted({s.start.at for s in self.stages if s.start.stage == name and s.start.at < 1})


def read_curriculum(
    file: str | Path, data: str | Path | None = None, changes: Mapping[str, Any] | None = None
) -> Curriculum:
    """A curriculum from its YAML file.

    ``datasets`` maps names to paths, or to ``{path, speed}``: how fast its recordings are played, 0.5 to 2. ``stages``
    maps names to the fields of ``Stage``; ``defaults`` are fields all of them share. A blend
    ``{like: STAGE, times: x, NAME: β, ...}`` takes another stage's weights times x and then its own.

    Args:
        file: a path, or the name of a curriculum that comes with the package.
        data: folder the datasets' paths are relative to; the file's own folder if None.
        changes: fields to change: {"STAGE.lr": 1e-5, "STAGE.lora.rank": 8}, without ``STAGE.`` where there is one.

    Raises:
        ValueError: one line with the file and what is wrong: an unknown key, stage, part or dataset, a value out of
            range, a start from a stage that is not earlier.
    """
    path = values.find(file, "curricula")
    raw = with_changes(read_yaml(path), changes or {})
    try:
        return _curriculum(raw, path.stem, data or path.parent, path.parent)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def with_changes(raw: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A curriculum's YAML with changed fields; see ``afn_model.train.values.changed_stages``."""
    return values.changed_stages(raw, changes, [f.name for f in fields(Stage)])


def made_curriculum(raw: dict[str, Any], name: str, folder: str | Path = ".") -> Curriculum:
    """A curriculum from what its YAML would hold; its paths start from ``folder``.

    Raises:
        ValueError: as of ``read_curriculum``.
    """
    try:
        return _curriculum(raw, name, folder, Path(folder))
    except TypeError as error:
        raise ValueError(str(error)) from None


def write_curriculum(curriculum: Curriculum, path: Path) -> None:
    """Writes a curriculum with every field filled in; ``read_curriculum`` reads the same one back."""
    stages = {}
    for stage in curriculum.stages:
        found = {f.name: getattr(stage, f.name) for f in fields(Stage) if f.name != "name"}
        found |= {"trains": list(stage.trains), "betas": list(stage.betas)}
        found["start"] = stage.start.stage if stage.start.at == 1 else asdict(stage.start)
        stages[stage.name] = found
    datasets: dict[str, Any] = {name: str(located(Path.cwd(), path)) for name, path in curriculum.datasets.items()}
    datasets |= {name: {"path": datasets[name], "speed": speed} for name, speed in curriculum.speeds.items()}
    whole = {"name": curriculum.name, "seed": curriculum.seed, "datasets": datasets, "stages": stages}
    write_text(path, values.to_yaml(whole))


def _curriculum(raw: dict, name: str, folder: str | Path, home: Path) -> Curriculum:
    known(raw, ("name", "seed", "datasets", "defaults", "stages"), "the curriculum")
    datasets, speeds = {}, {}
    for key, file in values.mapping(raw.get("datasets"), "datasets").items():
        if isinstance(file, dict):
            known(file, ("path", "speed"), f"dataset {shown(key)}")
            if (speed := checked_speed(file.get("speed", 1), f"dataset {shown(key)}: speed")) != 1:
                speeds[key] = speed
            file = file.get("path")
        if not isinstance(file, str) or not file:
            raise ValueError(f"dataset {shown(key)}: {shown(file)} is no path")
        datasets[values.name(key, "dataset")] = located(folder, file)
    defaults = values.mapping(raw.get("defaults"), "defaults")
    blends: dict[str, dict[str, float]] = {}
    stages: list[Stage] = []
    for key, value in values.mapping(raw.get("stages"), "stages").items():
        what = f"stage {values.name(key, 'stage')}"
        text = renamed({**defaults, **values.mapping(value, what)}, what)
        known(text, (f.name for f in fields(Stage) if f.name != "name"), what)
        blends[key] = _blend(text.get("blend") or {}, blends, key)
        missing = [dataset for dataset in blends[key] if dataset not in datasets]
        if missing:
            raise ValueError(f"stage {key}: no dataset {', '.join(missing)}; there are {', '.join(datasets)}")
        start = _start(text.get("start", "base"), what, stages)
        found = _fields(text, what)
        held = found.get("eval", {}).get("data")
        if isinstance(held, str) and held not in datasets:
            found["eval"] = {**found["eval"], "data": str(located(folder, held))}
        if found.get("reblend"):
            each = values.mapping(found["reblend"].get("held"), f"{what}: reblend: held")
            files = {
                name: str(located(folder, file)) if isinstance(file, str) and file not in datasets else file
                for name, file in each.items()
            }
            found["reblend"] = {**found["reblend"], "held": files}
        if found.get("adapter"):
            found["adapter"] = str((home / found["adapter"]).absolute())
        stages.append(Stage(**{**found, "name": key, "blend": blends[key], "start": start}))
    if not stages:
        raise ValueError("no stages")
    seed = values.whole(raw.get("seed", 0), "seed")
    return Curriculum(str(raw.get("name", name)), tuple(stages), datasets, seed, speeds)


def _fields(text: dict[str, Any], what: str) -> dict[str, Any]:
    """The fields of a stage, each of its kind."""
    found = dict(text)
    trains = text.get("trains", ())
    found["trains"] = (trains,) if isinstance(trains, str) else _listed(trains, f"{what}: trains")
    if "betas" in text:
        betas = _listed(text["betas"], f"{what}: betas")
        found["betas"] = tuple(values.number(beta, f"{what}: betas") for beta in betas)
    given = {key: value for key, value in text.items() if value is not None or key not in ("steps", "minutes")}
    rates = ("lr", "epochs", "max_audio", "weight_decay", "layer_decay", "clip", "warmup", "minutes", "bad_share")
    found |= values.numbers(given, rates, what)
    found |= values.numbers(given, ("context", "batch_tokens", "batch_prompts", "steps", "chunk"), what, values.whole)
    for key in ("eval", "asr", "reblend", "grpo", "dpo", "codec", "talker", "layout"):
        if key in text:
            found[key] = values.mapping(text[key], f"{what}: {key}")
    if "eval" in found:
        found["eval"] = {key: value for key, value in found["eval"].items() if value is not None}
        found["eval"] |= values.numbers(found["eval"], ("share",), f"{what}: eval")
    if "asr" in found:  # whose head trains where it is not 0
        found["asr"] |= values.numbers(found["asr"], ("ctc",), f"{what}: asr")
    if "reblend" in found:
        found["reblend"] |= values.numbers(found["reblend"], ("rate", "floor"), f"{what}: reblend")
    if text.get("lora") is not None:
        lora = values.mapping(text["lora"], f"{what}: lora")
        found["lora"] = {k: v for k, v in lora.items() if v is not None and (k, v) != ("targets", ALL_LINEAR)}
    if "rates" in text:
        rated = values.mapping(text["rates"], f"{what}: rates")
        found["rates"] = {part: values.number(rate, f"{what}: rates: {shown(part)}") for part, rate in rated.items()}
    for key, kind in (("cache_encoder", bool), ("release_name", str), ("adapter", str), ("optimiser", str)):
        if not isinstance(text.get(key, kind()), kind):
            expected = "true or false" if kind is bool else "text"
            raise ValueError(f"{what}: {key} is {shown(text[key])}; {expected} is expected")
    return found


def _listed(value: Any, what: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{what}: a list is expected, not {shown(value)}")
    return tuple(value)


def _blend(raw: Any, earlier: Mapping[str, dict[str, float]], stage: str) -> dict[str, float]:
    if not isinstance(raw, dict):
        raise ValueError(f"stage {stage}: blend: datasets and their weights are expected, not {shown(raw)}")
    if "times" in raw and "like" not in raw:
        raise ValueError(f"stage {stage}: the blend has times, but not the stage that it is like")
    own = {key: value for key, value in raw.items() if key not in ("like", "times")}
    blend: dict[str, float] = {}
    if "like" in raw:
        if not isinstance(raw["like"], str) or raw["like"] not in earlier:
            raise ValueError(f"stage {stage}: the blend is like {shown(raw['like'])}, which is no earlier stage")
        times = values.number(raw.get("times", 1), f"stage {stage}: times")
        blend = {key: value * times for key, value in earlier[raw["like"]].items()}
    return blend | {
        values.name(key, f"stage {stage}: dataset"): values.number(value, f"stage {stage}: blend weight of {key}")
        for key, value in own.items()
    }


def _start(raw: Any, what: str, earlier: list[Stage]) -> Start:
    if isinstance(raw, dict):
        known(raw, ("stage", "at"), f"{what}: start")
        raw = Start(raw.get("stage", "base"), values.number(raw.get("at", 1), f"{what}: start: at"))
    start = raw if isinstance(raw, Start) else Start(raw)
    names = ["base", *(before.name for before in earlier)]
    if start.stage not in names:
        raise ValueError(f"{what}: starts from {shown(start.stage)}, but before it there are {', '.join(names)}")
    if not 0 < start.at <= 1 or (start.stage == "base" and start.at < 1):
        expected = "a share above 0 and up to 1 is expected, and 1 for base"
        raise ValueError(f"{what}: starts from {start.stage} at {start.at}: {expected}")
    return start


def renamed(fields: dict[str, Any], what: str) -> dict[str, Any]:
    """The fields under their present names, with a warning for each former name."""
    for old, new in FORMER_NAMES.items():
        if old in fields:
            warnings.warn(f"{what}: {old} is now called {new}; the old name will go in the next version", stacklevel=2)
            fields.setdefault(new, fields.pop(old))
    return fields
