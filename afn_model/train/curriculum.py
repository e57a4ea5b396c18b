"""A curriculum as data: stages read from one YAML file; values out of range are found before anything is loaded."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from afn_model.files import write_text

HERE = Path(__file__).parent
FORMER_NAMES = {"becomes": "release_name"}
METHODS = ("sft", "grpo")
SCHEDULES = ("cosine", "linear", "constant")
PARTS = {
    "encoder": ("encoder",),
    "adaptor": ("adaptor",),
    "language_model": ("language_model", "lm_head"),
    "all": ("encoder", "adaptor", "language_model", "lm_head"),
}


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
        method: "sft" or "grpo".
        trains: parts that get gradients: encoder, adaptor, language_model (with its head), or all.
        max_audio: seconds of audio a sample may have; the rest is cut off.
        context: tokens of a packed sequence.
        start: "base", a stage, or {stage: name, at: share of that stage, above 0 to 1}.
        blend: how often each dataset is seen per epoch (β).
        batch_tokens: tokens of an optimiser step, all ranks together; a multiple of ``context``.
        batch_prompts: prompts of an optimiser step (GRPO).
        epochs, steps, minutes: how long; the stage ends at whichever comes first. A stage that ends by the clock is not
            reproducible.
        lr, warmup, schedule, betas, weight_decay, clip: AdamW. ``warmup`` is a share of the stage, ``clip`` the largest
            gradient norm.
        lora: {rank, alpha, targets} instead of training the language model's own weights.
        cache_encoder: cache the features of a frozen encoder; for one rank, and recordings that come again.
        release_name: the released model that this stage gives, for reports (Captioner, Instruct, Think).
        grpo: settings of ``afn_model.train.grpo.GRPOSettings``.
        layout: fields of ``RunLayout`` that this stage changes.
    """

    name: str
    trains: tuple[str, ...]
    blend: dict[str, float]
    method: str = "sft"
    max_audio: float = 30.0
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
    lora: dict[str, Any] | None = None
    cache_encoder: bool = False
    release_name: str = ""
    grpo: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        def need(condition: bool, text: str) -> None:
            if not condition:
                raise ValueError(f"stage {self.name}: {text}")

        need(self.method in METHODS, f"method {self.method!r} is none of {', '.join(METHODS)}")
        unknown = [part for part in self.trains if part not in PARTS]
        need(not unknown and len(self.trains) > 0, f"trains {list(self.trains)}; the parts are {', '.join(PARTS)}")
        need(len(self.blend) > 0, "the blend names no dataset")
        need(self.context >= 16, f"context {self.context} is below 16 tokens")
        need(self.max_audio > 0, f"max_audio {self.max_audio} is no number of seconds")
        need(self.epochs > 0 and (self.steps is None or self.steps > 0), f"{self.epochs} epochs, {self.steps} steps")
        need(self.minutes is None or self.minutes > 0, f"minutes {self.minutes} is no length of time")
        endless = math.isinf(self.epochs) and self.steps is None and self.minutes is None
        need(not endless, "no number of epochs, steps or minutes")
        need(self.lr > 0 and 0 <= self.warmup < 1 and self.clip > 0, "lr, warmup or clip is out of range")
        need(self.schedule in SCHEDULES, f"schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}")
        need(len(self.betas) == 2, f"betas {list(self.betas)} are not two numbers")
        need(self.chunk > 0, f"chunk {self.chunk} is no number of samples")
        if self.method == "sft":
            whole = self.batch_tokens > 0 and self.batch_tokens % self.context == 0
            need(whole, f"batch_tokens {self.batch_tokens} is no multiple of the context {self.context}")
        else:
            need(self.batch_prompts > 0, f"batch_prompts {self.batch_prompts}: a GRPO stage counts prompts")
        frozen = "encoder" not in self.modules and self.method == "sft"
        need(frozen or not self.cache_encoder, "cache_encoder is for SFT with a frozen encoder")
        if self.lora is not None:
            need("language_model" in self.modules, "lora is for stages that train the language_model")
            known(self.lora, ("rank", "alpha", "targets"), f"stage {self.name}: lora")
            need({"rank", "alpha"} <= self.lora.keys(), "lora needs a rank and an alpha")

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the model's submodules that train."""
        return tuple(dict.fromkeys(module for part in self.trains for module in PARTS[part]))

    @property
    def bins(self) -> int:
        """Packed sequences, or prompts, of an optimiser step."""
        return self.batch_tokens // self.context if self.method == "sft" else self.batch_prompts


@dataclass(frozen=True)
class RunLayout:
    """The parallelism layout of a run, and what else changes speed and memory but not what is learnt.

    Args:
        dtype: of the computation, float32 or bfloat16; trained weights are float32 either way.
        shard: ranks that share one copy of the weights (FSDP2), 0 for all of them; the other ranks replicate it.
        ulysses, ring: ranks that share one packed sequence, by heads inside a node and by blocks of keys across nodes,
            in SFT stages; GRPO stages are data parallel over all ranks.
        contexts: {tokens: fields} that replace these in SFT stages of at least so many tokens of context; of several
            the largest counts.
        recompute: activations recomputed in the backward: none, selective or full.
        compile: run the blocks through torch.compile.
        workers: processes that decode audio, per rank.
        keep: checkpoints kept per stage.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: minutes between checkpoints, whichever comes first.
        log_every: steps between log lines.
    """

    dtype: str = "float32"
    shard: int = 0
    ulysses: int = 1
    ring: int = 1
    contexts: dict[int, dict[str, Any]] = field(default_factory=dict)
    recompute: str = "none"
    compile: bool = False
    workers: int = 1
    keep: int = 2
    checkpoint_every: int = 500
    checkpoint_minutes: float = 20.0
    log_every: int = 10

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"layout: dtype {self.dtype!r} is neither float32 nor bfloat16")
        if self.recompute not in ("none", "selective", "full"):
            raise ValueError(f"layout: recompute {self.recompute!r} is none of none, selective, full")
        if min(self.ulysses, self.ring) < 1 or self.shard < 0 or self.workers < 0:
            raise ValueError(f"layout: ulysses {self.ulysses}, ring {self.ring}, shard {self.shard} are out of range")
        if min(self.keep, self.checkpoint_every, self.log_every) < 1:
            raise ValueError("layout: keep, checkpoint_every and log_every are at least 1")
        for context, changes in self.contexts.items():
            if not isinstance(context, int) or not isinstance(changes, dict):
                raise ValueError(
                    f"layout: contexts: {context!r}: {changes!r:.60} is no number of tokens with its fields"
                )
            known(changes, (f.name for f in fields(RunLayout) if f.name != "contexts"), f"layout: contexts: {context}")
            replace(self, contexts={}, **changes)


@dataclass(frozen=True)
class Curriculum:
    """Stages in order, the datasets they blend, and the seed of everything random."""

    name: str
    stages: tuple[Stage, ...]
    datasets: dict[str, Path]
    seed: int = 0

    def __getitem__(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"no stage {name!r}; there are {', '.join(stage.name for stage in self.stages)}")

    def milestones(self, name: str) -> list[float]:
        """Shares of a stage, below 1, after which a later stage starts from it."""
        return sorted({s.start.at for s in self.stages if s.start.stage == name and s.start.at < 1})


def read_curriculum(file: str | Path, data: str | Path | None = None) -> Curriculum:
    """A curriculum from its YAML file.

    ``stages`` maps names to the fields of ``Stage``; ``defaults`` are fields all of them share. A blend
    ``{like: STAGE, times: x, NAME: β, ...}`` takes another stage's weights times x and then its own.

    Args:
        file: a path, or the name of a curriculum that comes with the package.
        data: folder the datasets' paths are relative to; the file's own folder if None.

    Raises:
        ValueError: one line with the file and what is wrong: an unknown key, stage, part or dataset, a value out of
            range, a start from a stage that is not earlier.
    """
    path = find(file, "curricula")
    raw = _read_yaml(path)
    try:
        return _curriculum(raw, path.stem, Path(data) if data else path.parent)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def write_curriculum(curriculum: Curriculum, path: Path) -> None:
    """Writes a curriculum with every field filled in; ``read_curriculum`` reads the same one back."""
    import yaml

    stages = {}
    for stage in curriculum.stages:
        values = {f.name: getattr(stage, f.name) for f in fields(Stage) if f.name != "name"}
        values |= {"trains": list(stage.trains), "betas": list(stage.betas)}
        values["start"] = stage.start.stage if stage.start.at == 1 else asdict(stage.start)
        stages[stage.name] = values
    datasets = {name: str(path.absolute()) for name, path in curriculum.datasets.items()}
    whole = {"name": curriculum.name, "seed": curriculum.seed, "datasets": datasets, "stages": stages}
    write_text(path, yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))


def _curriculum(raw: dict, name: str, folder: Path) -> Curriculum:
    known(raw, ("name", "seed", "datasets", "defaults", "stages"), "the curriculum")
    for key in ("datasets", "defaults", "stages"):
        if not isinstance(raw.get(key) or {}, dict):
            raise ValueError(f"{key}: names and values are expected, not {raw[key]!r:.60}")
    datasets = {key: folder / value for key, value in (raw.get("datasets") or {}).items()}
    blends: dict[str, dict[str, float]] = {}
    stages: list[Stage] = []
    for key, value in (raw.get("stages") or {}).items():
        text = renamed({**(raw.get("defaults") or {}), **(value or {})}, f"stage {key}")
        known(text, (f.name for f in fields(Stage) if f.name != "name"), f"stage {key}")
        blends[key] = _blend(text.get("blend") or {}, blends, key)
        missing = [dataset for dataset in blends[key] if dataset not in datasets]
        if missing:
            raise ValueError(f"stage {key}: no dataset {', '.join(missing)}; there are {', '.join(datasets)}")
        text |= {"name": key, "blend": blends[key], "start": _start(text.get("start", "base"), key, stages)}
        text["trains"] = tuple([text["trains"]] if isinstance(text.get("trains"), str) else text.get("trains", ()))
        if "betas" in text:
            text["betas"] = tuple(text["betas"])
        for number in ("lr", "epochs", "max_audio", "weight_decay", "clip", "warmup", "minutes"):
            if text.get(number) is not None:
                text[number] = _number(text[number], f"stage {key}: {number}")
        for number in ("context", "batch_tokens", "batch_prompts", "steps", "chunk"):
            if text.get(number) is not None:
                text[number] = _whole(text[number], f"stage {key}: {number}")
        stages.append(Stage(**text))
    if not stages:
        raise ValueError("no stages")
    return Curriculum(raw.get("name", name), tuple(stages), datasets, int(raw.get("seed", 0)))


def _blend(raw: Any, earlier: Mapping[str, dict[str, float]], stage: str) -> dict[str, float]:
    if not isinstance(raw, dict):
        raise ValueError(f"stage {stage}: blend: datasets and their weights are expected, not {raw!r:.60}")
    own = {key: value for key, value in raw.items() if key not in ("like", "times")}
    blend: dict[str, float] = {}
    if "like" in raw:
        if raw["like"] not in earlier:
            raise ValueError(f"stage {stage}: the blend is like {raw['like']!r}, which is no earlier stage")
        times = _number(raw.get("times", 1), f"stage {stage}: times")
        blend = {key: value * times for key, value in earlier[raw["like"]].items()}
    return blend | {key: _number(value, f"stage {stage}: blend weight of {key}") for key, value in own.items()}


def _start(raw: Any, stage: str, earlier: list[Stage]) -> Start:
    start = Start(**raw) if isinstance(raw, dict) else Start(str(raw))
    names = ["base", *(before.name for before in earlier)]
    if start.stage not in names:
        raise ValueError(f"stage {stage}: starts from {start.stage!r}, but before it there are {', '.join(names)}")
    if not 0 < start.at <= 1 or (start.stage == "base" and start.at < 1):
        expected = "a share above 0 and up to 1 is expected, and 1 for base"
        raise ValueError(f"stage {stage}: starts from {start.stage} at {start.at}: {expected}")
    return start


def read_layout(file: str | Path, changes: Mapping[str, Any] | None = None) -> RunLayout:
    """A layout from its YAML file, or by the name of one that comes with the package: cpu, gpu, 8gpu, 128gpu."""
    path = find(file, "layouts")
    changes = dict(changes or {})
    raw = _read_yaml(path) | changes
    try:
        known(raw, (f.name for f in fields(RunLayout)), "the layout")
        whole = ("shard", "ulysses", "ring", "workers", "keep", "checkpoint_every", "log_every")
        raw |= {key: _whole(raw[key], f"layout: {key}") for key in whole if key in raw}
        layout = RunLayout(**raw)
        # What is asked for by name holds for every context; ulysses and ring are one decision.
        asked = {*changes, *(("ulysses", "ring") if {"ulysses", "ring"} & changes.keys() else ())}
        if "contexts" not in asked:
            kept = {n: {k: v for k, v in some.items() if k not in asked} for n, some in layout.contexts.items()}
            layout = replace(layout, contexts=kept)
        return layout
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def for_stage(layout: RunLayout, stage: Stage) -> RunLayout:
    """The layout with the changes for the stage's context, and then the stage's own."""
    known(stage.layout, (f.name for f in fields(RunLayout)), f"stage {stage.name}: layout")
    reached = [context for context in layout.contexts if context <= stage.context and stage.method == "sft"]
    return replace(layout, **{**(layout.contexts[max(reached)] if reached else {}), **stage.layout})


def find(file: str | Path, folder: str) -> Path:
    """The file, or the one of that name which comes with the package."""
    path = Path(file)
    if path.is_file():
        return path
    own = HERE / folder / f"{file}.yaml"
    if own.is_file():
        return own
    names = ", ".join(sorted(p.stem for p in (HERE / folder).glob("*.yaml")))
    raise ValueError(f"{file}: no such file, and {folder} that come with the package are {names}")


def renamed(fields: dict[str, Any], what: str) -> dict[str, Any]:
    """The fields under their present names, with a warning for each former name."""
    for old, new in FORMER_NAMES.items():
        if old in fields:
            warnings.warn(f"{what}: {old} is now called {new}; the old name will go in the next version", stacklevel=2)
            fields.setdefault(new, fields.pop(old))
    return fields


def known(given: Iterable[str], names: Iterable[str], what: str) -> None:
    """ValueError where a key is none of the names."""
    names = list(names)
    unknown = [key for key in given if key not in names]
    if unknown:
        raise ValueError(f"{what} has no {', '.join(map(str, unknown))}; it takes {', '.join(names)}")


def _number(value: Any, what: str) -> float:
    # YAML 1.1 reads 1e-3 as text.
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is {value!r}, not a number") from None


def _whole(value: Any, what: str) -> int:
    number = _number(value, what)
    if number != int(number):
        raise ValueError(f"{what} is {value!r}, not a whole number")
    return int(number)


def _read_yaml(path: Path) -> dict:
    import yaml

    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected names and values")
    return raw
