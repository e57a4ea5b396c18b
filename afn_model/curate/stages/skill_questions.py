"""Questions about clips, each of which trains a skill: time, counting, attributes, sounds, speech and music."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import yaml

from afn_model.checks import said, shown, whole
from afn_model.curate import identity
from afn_model.curate.grounding import named_in, stems
from afn_model.curate.prompt_files import PROMPTS
from afn_model.curate.questions import SLACK, Check, Question
from afn_model.curate.stage import Context, Resources, Row
from afn_model.curate.stages.asking import seconds_of
from afn_model.curate.stages.asking_questions import QuestionPart, QuestionStage
from afn_model.curate.stages.informative import MIX
from afn_model.curate.texts import words_of
from afn_model.curate.timeline import Timeline, timeline_of
from afn_model.infer.time_words import SPELLED, number_value

WRONG = 3  # options beside the answer
LEAST = 0.5  # seconds of speech or music that are measured in a clip which has it
NEAR = 1.0, 0.25  # seconds, or share of it, by which a length may differ from that of its evidence
_SPANS = {"speech": ("speech",), "music": ("music", "singing")}
_TIMES = {"zero": 0, "none": 0, "never": 0, "once": 1, "twice": 2}
_NUMBER = re.compile(rf"\d+(?:\.\d+)?|{SPELLED}")
_STEP = re.compile(r"\s*(?:,|;|\bthen\b|\bfollowed by\b|\bafter that\b)(?:\s*(?:,|\band\b|\bthen\b))*\s*", re.I)
_LENGTH = re.compile(r"(\d+(?:\.\d+)?|[a-z]+) (?:seconds?|s)\b", re.I)


@dataclass(frozen=True)
class Skill:
    """A skill of the table.

    Args:
        name: a question's task.
        asked: one sentence.
        needs: what the clip must have of speech, music and sound.
        events: that it must have at least.
        checks: of the questions.
    """

    name: str
    asked: str
    needs: frozenset[str] = frozenset()
    events: int = 1
    checks: tuple[Check, ...] = ()


def as_many_as_evidence(one: Question, heard: Timeline) -> str:
    """The number that is the answer is that of stretches of evidence, of which no two overlap."""
    numbers = [_value(word) for word in words_of(one.answer)]
    numbers = [number for number in numbers if number is not None]
    spans = sorted(one.evidence)
    apart = all(left[0] != right[0] or left[2] <= right[1] + SLACK for left, right in pairwise(spans))
    return "" if apart and numbers == [len(spans)] else "the number is not that of its evidence"


def in_order_of_evidence(one: Question, heard: Timeline) -> str:
    """Each thing of the answer is in the captions of its own stretch of evidence, and those begin one after another,
    by more than ``SLACK``."""
    steps = [step for step in _STEP.split(one.answer.strip(" .")) if step]
    starts = [(clip, start) for clip, start, _ in one.evidence]
    if len(steps) < 2 or len(steps) != len(starts):
        return "an order of other things than its evidence"
    if any(left >= (right[0], right[1] - SLACK) for left, right in pairwise(starts)):
        return "not in the order of its evidence"
    pairs = zip(steps, one.evidence, strict=True)
    found = all(named_in(heard.during([span])).intersection(stems(step)) for step, span in pairs)
    return "" if found else "not in the order of its evidence"


def as_long_as_evidence(one: Question, heard: Timeline) -> str:
    """A number of seconds in the answer is that of the evidence, about."""
    told = _LENGTH.search(one.answer)
    value = _value(told[1]) if told else None
    if value is None:
        return ""
    seconds = sum(end - start for _, start, end in one.evidence)
    return "" if abs(value - seconds) <= max(NEAR[0], NEAR[1] * seconds) else "a length other than that of its evidence"


CHECKS: dict[str, Check] = {
    "count": as_many_as_evidence,
    "order": in_order_of_evidence,
    "length": as_long_as_evidence,
}


@dataclass(frozen=True)
class SkillQuestions(QuestionStage):
    """Writes ``skill_questions``: products of the axis "skills" whose task is the skill.

    Of the skills that a clip can carry, the hash of its id chooses ``each``; the writer is asked for one question of
    each, from the captions of the clip. A clip has speech and music where they are measured in it or the scores say
    so, and sound where the scores say so, or where nothing else is known to be there.

    Args:
        each: skills of a clip, at most.
        clips: field with the clips: "mined", or "clips" without quotas.
        skills: names of those that are asked for; all of the table if none.
        table: of skills: one of this package's by its name, or a YAML file.
    """

    name: ClassVar[str] = "skill-questions"
    writes: ClassVar[tuple[str, ...]] = ("skill_questions",)
    # 40 clips of 15 s, four requests about each, of 700 tokens and 225 of reply.
    resources: ClassVar[Resources] = Resources(batch=4, seconds=2, calls=160, tokens_in=112_000, tokens_out=36_000)

    prompt: str = "skill_questions"
    max_tokens: int | None = 500
    each: int = 4
    clips: str = "mined"
    skills: tuple[str, ...] = ()
    table: str = "skills"

    def __post_init__(self):
        super().__post_init__()
        whole(self.each, "each", 1, 100)
        known = [one.name for one in skill_table(self.table)]
        if wrong := [name for name in self.skills if name not in known]:
            raise ValueError(f"no skill {shown(wrong[0])}; there are {', '.join(known)}")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.clips, "merged", "segments", "spans", "scores", "source_id", "seconds")

    def depends(self) -> Mapping[str, Any]:
        return {**super().depends(), "skills": identity.of(_table_text(self.table))}

    def parts(self, row: Row, context: Context) -> list[QuestionPart]:
        whole_row, merged = timeline_of(row), {one["segment"]: one for one in row["merged"]}
        mixes = {one["segment"]: one["mix"] for one in row["scores"]}
        found = []
        for clip in row[self.clips]:
            heard = whole_row.part(clip["start"], clip["end"])
            captions = [merged[name] for name in clip["segments"] if name in merged]
            has = heard_in(clip, row["spans"], [kind for name in clip["segments"] for kind in mixes.get(name, ())])
            for skill in self._chosen(clip["id"], has, events_of(captions)) if captions else ():
                part = QuestionPart(
                    subject=clip["id"],
                    heard=heard,
                    prompt=self.prompt,
                    kinds=(skill.name,),
                    axis="skills",
                    audios=({"start": clip["start"], "end": clip["end"]},),
                    data={"skill": skill.name, "asked": skill.asked},
                    options=WRONG,
                    further={skill.name: skill.checks},
                )
                found.append(part)
        return found

    def _chosen(self, clip: str, has: set[str], events: int) -> list[Skill]:
        """Skills that a clip can carry, drawn by the hash of its id, so that one that is added to the table replaces
        one of them at most."""
        table = [one for one in skill_table(self.table) if not self.skills or one.name in self.skills]
        able = [one for one in table if one.needs <= has and one.events <= events]
        return sorted(able, key=lambda one: identity.of("skill", clip, one.name))[: self.each]


def heard_in(clip: Mapping[str, Any], spans: Sequence[Mapping[str, Any]], mix: Iterable[str]) -> set[str]:
    """What a clip has of speech, music and sound."""
    measured = {kind for kind, names in _SPANS.items() if seconds_of(spans, names, clip["start"], clip["end"]) >= LEAST}
    return measured | set(mix) or {"sound"}


def events_of(captions: Iterable[Mapping[str, Any]]) -> int:
    """How many different events captions list; one that lists none counts as one."""
    listed = [one.get("events") or [one["text"]] for one in captions]
    return len({" ".join(words_of(event)) for some in listed for event in some})


def skill_table(name: str) -> tuple[Skill, ...]:
    """The skills of a table, in order.

    Raises:
        ValueError: no such table; one line about what is wrong in it.
    """
    return _read_table(name, _table_text(name))


def _table_text(name: str) -> str:
    path = PROMPTS / f"{name}.yaml"
    try:
        return (path if path.is_file() else Path(name)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"no table of skills {shown(name)}: {said(error)}") from None


@lru_cache
def _read_table(name: str, text: str) -> tuple[Skill, ...]:
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: no YAML ({said(error)})") from None
    if not isinstance(told, dict) or not told:
        raise ValueError(f"{name}: a table of skills is {{name: {{asked, needs, events, check}}}}")
    return tuple(_skill(name, skill, one) for skill, one in told.items())


def _skill(table: str, name: Any, told: Any) -> Skill:
    where = f"{table}, skill {shown(name)}"
    if not isinstance(name, str) or not isinstance(told, dict) or not isinstance(told.get("asked"), str):
        raise ValueError(f"{where}: expected what is asked, as text")
    if unknown := sorted(map(str, set(told) - {"asked", "needs", "events", "check"})):
        raise ValueError(f"{where}: unknown field {', '.join(unknown)}")
    needs, check = told.get("needs", []), told.get("check")
    if not isinstance(needs, list) or not all(one in MIX for one in needs):
        raise ValueError(f"{where}: needs are some of {', '.join(MIX)}, got {shown(needs)}")
    if check is not None and check not in CHECKS:
        raise ValueError(f"{where}: check is one of {', '.join(CHECKS)}, got {shown(check)}")
    events = whole(told.get("events", 1), f"{where}: events", 1)
    return Skill(name, told["asked"], frozenset(needs), events, (CHECKS[check],) if check else ())


def _value(word: str) -> float | None:
    word = word.lower()
    return number_value(word) if _NUMBER.fullmatch(word) else _TIMES.get(word)
