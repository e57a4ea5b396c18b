"""Plans: the stages of a curation in order, with their parameters, as a YAML file says them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from afn_model.checks import said, shown, whole
from afn_model.curate import identity
from afn_model.curate.spending import check_budgets
from afn_model.curate.stage import Source, Stage

PLANS = Path(__file__).parent / "plans"
# Name in plans -> module and class; others are named "package.module:Class".
STAGES: dict[str, str] = {
    "discover": "discover:Discover",
    "wanted": "discover:Wanted",
    "fetch": "fetch:Fetch",
    "probe": "probe:Probe",
    "licences": "licences:Licences",
    "exact-duplicates": "duplicates:ExactDuplicates",
    "fingerprints": "near_duplicates:Fingerprints",
    "near-duplicates": "near_duplicates:NearDuplicates",
    "decontaminate": "decontaminate:Decontaminate",
    "activity": "activity:Activity",
    "quality": "quality:Quality",
    "language": "language:Language",
    "segment": "segments:Segments",
    "transcribe": "transcripts:Transcripts",
    "caption": "captions:SegmentCaptions",
    "voices": "voices:Voices",
    "video-captions": "video_captions:VideoCaptions",
    "diarise": "diarise:Diarise",
    "merge": "merge:Merge",
    "near-texts": "near_texts:NearTexts",
    "privacy": "privacy:Privacy",
    "long-questions": "long_questions:LongQuestions",
    "informative": "informative:Informative",
    "mine": "mine:Mine",
    "clip-quotas": "clip_quotas:ClipQuotas",
    "skill-questions": "skill_questions:SkillQuestions",
    "talkers": "talkers:Talkers",
    "pool-clips": "pools:PoolClips",
    "pools": "pools:Pools",
    "multi-audio": "multi_audio:MultiAudio",
    "chat": "chat:ChatStage",
    "safety": "safety:Safety",
    "instructions": "instructions:Instructions",
    "think": "think:Think",
    "think-filters": "think_filters:ThinkFilters",
    "decontaminate-texts": "decontaminate:DecontaminateTexts",
    "quotas": "quotas:Quotas",
    "export": "export:Export",
}
# Of an annotator, what its replies depend on; how it is reached, and how fast, is none of it.
OF_REPLIES = ("model", "revision", "api", "call", "options", "settings", "structured")
OF_PLAN = ("name", "stages", "shards", "seed", "annotators", "budgets")


@dataclass(frozen=True)
class CurationPlan:
    """The stages of a run.

    Args:
        name: of the plan.
        stages: in order; the first finds recordings.
        shards: parts that rows are divided into, by their ids.
        seed: of what is drawn.
        annotators: name -> how it is reached, as ``annotators.annotator_of`` reads it. Of one that names no "model"
            the keys of stages say none: an endpoint that comes to serve another model runs no stage again, and the
            lineage of each row names the model that has replied.
        budgets: stage -> {"calls", "tokens", "seconds": most}.
        folder: that relative paths of the plan start from.
    """

    name: str
    stages: tuple[Stage, ...]
    shards: int = 16
    seed: int = 0
    annotators: Mapping[str, Mapping[str, Any]] | None = None
    budgets: Mapping[str, Mapping[str, float]] | None = None
    folder: Path = Path()

    @cached_property
    def before(self) -> dict[str, tuple[str, ...]]:
        """The stages that each stage gets something from: those that write what it reads, and the one right before it,
        whose kept rows it gets."""
        found: dict[str, tuple[str, ...]] = {}
        for place, stage in enumerate(self.stages):
            writers = [one.name for one in self.stages[:place] if set(one.writes) & set(stage.reads)]
            found[stage.name] = tuple(dict.fromkeys([one.name for one in self.stages[:place][-1:]] + writers))
        return found

    @cached_property
    def keys(self) -> dict[str, str]:
        """What each stage's outcomes are a function of, beside its rows: its own version and parameters, the annotators
        that they name, and the keys of the stages that write what it reads. Another version changes the keys of a
        stage and of its descendants alone. The first stage is none of them: what it found of a row is in the row, so
        that more rows are found without running the others again."""
        found: dict[str, str] = {}
        for stage in self.stages:
            before = [
                found[one.name]
                for one in self.stages
                if one.name in found and not isinstance(one, Source) and set(one.writes) & set(stage.reads)
            ]
            own = {name: value for name, value in stage.parameters().items() if name not in stage.files}
            told = [own, dict(stage.depends()), self._asked(stage)]
            found[stage.name] = identity.of(stage.name, stage.version, told, self.seed, before)[:12]
        return found

    def _asked(self, stage: Stage) -> dict[str, dict[str, Any]]:
        """What replies depend on of the annotators that parameters of a stage name."""
        told, values = self.annotators or {}, stage.parameters().values()
        names = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
        return {
            name: {key: told[name][key] for key in keys_of_replies(told[name]) if key in told[name]}
            for name in names
            if isinstance(name, str) and name in told
        }

    def previous(self, name: str) -> str | None:
        """The stage right before; None for the first."""
        place = [stage.name for stage in self.stages].index(name)
        return self.stages[place - 1].name if place else None

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def keys_of_replies(annotator: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of what replies depend on; where an annotator does not name its model, its address stands for it."""
    return OF_REPLIES if "model" in annotator else (*OF_REPLIES, "url")


Plan = CurationPlan


def read_plan(path: str | Path, changes: Mapping[str, Any] | None = None) -> Plan:
    """A plan from a YAML file, or one of this package's by its name.

    Args:
        path: of the file.
        changes: of parameters: {"stage.parameter": value}.

    Raises:
        ValueError: one line: no such file, an unknown field, stage or parameter, two stages of one name, a field that
            is read before it is written.
    """
    path = Path(path)
    if not path.is_file() and path.suffix == "" and (PLANS / f"{path}.yaml").is_file():
        path = PLANS / f"{path}.yaml"
    try:
        told = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no YAML ({said(error)})") from None
    if not isinstance(told, dict) or not isinstance(told.get("stages"), list) or not told["stages"]:
        raise ValueError(f"{path}: a plan has a list of stages")
    if unknown := sorted(map(str, set(told) - set(OF_PLAN))):
        raise ValueError(f"{path}: unknown field {', '.join(unknown)}; a plan has {', '.join(OF_PLAN)}")
    try:
        stages = _stages(told["stages"], dict(changes or {}), path.parent.absolute())
        _check(stages)
        shards = whole(told.get("shards", 16), "shards", 1, 1 << 16)
        seed = whole(told.get("seed", 0), "seed")
        budgets = check_budgets(told.get("budgets"), [stage.name for stage in stages])
        annotators = told.get("annotators") or {}
        if not isinstance(annotators, dict) or not all(isinstance(one, dict) for one in annotators.values()):
            raise ValueError("annotators: expected a name for each, with how it is reached")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Plan(str(told.get("name", path.stem)), stages, shards, seed, annotators, budgets, path.parent.absolute())


def _stages(given: list[Any], changes: dict[str, Any], folder: Path) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for one in given:
        pairs = [(one, None)] if isinstance(one, str) else list(one.items()) if isinstance(one, dict) else []
        if len(pairs) != 1 or not isinstance(pairs[0][0], str) or not isinstance(pairs[0][1] or {}, dict):
            raise ValueError(f"a stage is a name, or a name with its parameters, got {shown(one)}")
        (name, parameters), kind = pairs[0], stage_class(pairs[0][0])
        own = dict(parameters or {})
        for change in [change for change in changes if change.startswith((f"{name}.", f"{kind.name}."))]:
            own[change.rpartition(".")[2]] = changes.pop(change)
        known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
        if unknown := sorted(map(str, set(own) - set(known))):
            raise ValueError(f"stage {name} has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
        try:
            for key, value in own.items():
                _check_kind(key, value, known[key].default)
                if key in kind.files and value:
                    own[key] = str(folder / value)
            found.append(
                kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in own.items()})
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"stage {name}: {said(error)}") from None
    if changes:
        names = ", ".join(stage.name for stage in found)
        raise ValueError(f"no such parameter: {', '.join(changes)}; expected STAGE.PARAMETER, of {names}")
    return tuple(found)


def _check_kind(key: str, value: Any, default: Any) -> None:
    """A parameter is of the kind of its default, where that is text, a number or yes and no."""
    kinds = {bool: ((bool,), "true or false"), int: ((int,), "a whole number"), str: ((str,), "text")}
    allowed, told = kinds.get(type(default), (((int, float), "a number") if isinstance(default, float) else ((), "")))
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
        raise ValueError(f"{key} must be {told}, got {shown(value)}")


def stage_class(name: str) -> type[Stage]:
    """The class of a stage.

    Raises:
        ValueError: there is none.
    """
    place = STAGES.get(name)
    module, _, attribute = (f"afn_model.curate.stages.{place}" if place else name).partition(":")
    try:
        if not attribute:
            raise ImportError
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        why = f" ({said(error)})" if attribute else ""
        raise ValueError(f"no stage {name!r}{why}; there are {', '.join(STAGES)}, or package.module:Class") from None
    if not (isinstance(found, type) and issubclass(found, Stage) and is_dataclass(found)):
        raise ValueError(f"no stage {name!r}: it is no Stage that is a dataclass")
    if place and found.name != name:
        raise ValueError(f"stage {name!r} calls itself {found.name!r}")
    return found


def _check(stages: tuple[Stage, ...]) -> None:
    names = [stage.name for stage in stages]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two stages are named {', '.join(twice)}")
    if not isinstance(stages[0], Source) or any(isinstance(stage, Source) for stage in stages[1:]):
        raise ValueError(f"the first stage finds recordings, and no other one does; the first is {names[0]}")
    if "url" not in stages[0].writes:
        raise ValueError(f"stage {names[0]} finds recordings and does not write their url")
    written: dict[str, str] = {"id": ""}
    for stage in stages:
        if missing := [name for name in stage.reads if name not in written]:
            later = [one.name for one in stages if set(one.writes) & set(missing)]
            where = f"only {', '.join(later)} writes it, later" if later else "no stage writes it"
            raise ValueError(f"stage {stage.name} reads {', '.join(missing)}: {where}")
        for name in stage.writes:
            if name in written:
                raise ValueError(f"stages {written[name]} and {stage.name} both write {name}")
            written[name] = stage.name
