"""Questions over several clips of different recordings, which name the clips by their numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.checks import whole
from afn_model.curate.clip_groups import clips_there, group, group_id, heard_in, numbers_in, partners, placed, places
from afn_model.curate.grounding import named_in, stands, stems
from afn_model.curate.questions import Check, Question
from afn_model.curate.requests import AnnotationResponse
from afn_model.curate.stage import Context, Resources, Row
from afn_model.curate.stages.asking_questions import QuestionPart, QuestionStage, Standing
from afn_model.curate.timeline import Timeline

SIZES = (2, 3, 4)  # clips of the groups of a recording, again and again
_ANSWER = re.compile(r"(?:the )?(?:audio )?clip \w+\.?", re.I)
_LIST = re.compile(r",? then |,? and |[,;]")


@dataclass(frozen=True)
class MultiAudio(QuestionStage):
    """Writes ``multi_audio``: questions about groups of two to four clips of a pool, the recording's own among them.

    Each group has similar and dissimilar partners by turns, none that another group of the recording has. A question
    stands if its evidence is in every clip that it needs, it names no clip that does not exist, and what it asks for is
    nowhere else: see ``CHECKS``. The clips stand before the question, after it, or in it where it names each.

    Args:
        groups: of a recording, at most; fewer where the pool has no more partners.
        count: of questions that a group is asked for.
    """

    name: ClassVar[str] = "multi-audio"
    reads: ClassVar[tuple[str, ...]] = ("source_id", "pool")
    writes: ClassVar[tuple[str, ...]] = ("multi_audio",)
    resources: ClassVar[Resources] = Resources(batch=8, seconds=0.1, calls=20, tokens_in=29_000, tokens_out=5_600)

    prompt: str = "multi_audio"
    max_tokens: int | None = 1000
    groups: int = 5
    count: int = 3

    def __post_init__(self):
        super().__post_init__()
        whole(self.groups, "groups", 1, 1000)
        whole(self.count, "count", 1, 20)

    def parts(self, row: Row, context: Context) -> list[QuestionPart]:
        return [] if row["pool"] is None else [self._part(clips) for clips in self._groups(row["pool"])]

    def _groups(self, pool: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
        left, found = partners(pool), []
        for number in range(self.groups):
            more = SIZES[number % len(SIZES)] - 1
            some, left = left[:more], left[more:]
            if not some:
                break
            found.append(group(pool["own"], some))
        return found

    def _part(self, clips: Sequence[Mapping[str, Any]]) -> QuestionPart:
        return QuestionPart(
            subject=group_id(clips),
            heard=heard_in(clips),
            prompt=self.prompt,
            kinds=tuple(CHECKS),
            axis="multi_audio",
            audios=places(clips),
            data={"count": str(self.count)},
            further={kind: (clips_there, *checks) for kind, checks in CHECKS.items()},
        )

    def together(self, one: QuestionPart, other: QuestionPart) -> bool:
        return one.subject == other.subject

    def _products(
        self, listed: Sequence[Standing], tries: Sequence[Sequence[AnnotationResponse]], tally: Counter[str]
    ) -> list[dict[str, Any]]:
        found = super()._products(listed, tries, tally)
        for product in found:
            asked, answered = product["messages"]
            content = placed(asked["content"], len(product["audios"]))
            product["messages"] = [{**asked, "content": content}, answered]
        return found


def named_clips(one: Question, heard: Timeline) -> str:
    """The evidence is in each clip that the question names, and in two at least."""
    there = {clip for clip, _, _ in one.evidence}
    return "" if numbers_in(one.question) <= there and len(there) > 1 else "evidence in too few clips"


def needed_clips(one: Question, heard: Timeline) -> str:
    """The same; in all clips where the question names none."""
    few = not numbers_in(one.question) and len({clip for clip, _, _ in one.evidence}) < len(heard.seconds)
    return "evidence in too few clips" if few else named_clips(one, heard)


def one_clip(one: Question, heard: Timeline) -> str:
    """The options are clips; what is asked for is in the one that the answer names, and in no other that is asked
    about."""
    if not all(_ANSWER.fullmatch(option) and len(numbers_in(option)) == 1 for option in one.options):
        return "the answer is no clip"
    (clip,) = numbers_in(one.answer)
    if all(clip != place for place, _, _ in one.evidence):
        return "evidence in too few clips"
    told = _named(heard)
    thing = set(stems(one.question)) & set().union(*told.values())
    if not thing or not thing <= told[clip]:
        return "what is asked for is not in the clip"
    return "what is asked for is in several clips" if any(thing <= told[n] for n in told if n != clip) else ""


def in_every_clip(one: Question, heard: Timeline) -> str:
    """What is common is in the captions of each clip of the evidence."""
    thing, told = stems(one.answer), _named(heard)
    return (
        ""
        if thing and all(stands(thing, told[clip]) for clip, _, _ in one.evidence)
        else "what is common is not in every clip"
    )


def not_in_every_clip(one: Question, heard: Timeline) -> str:
    """The answer names something that one clip of the evidence has and another one lacks."""
    told = _named(heard)
    own = [set(stems(one.answer)) & told[clip] for clip in {clip for clip, _, _ in one.evidence}]
    return "" if set().union(*own) != set.intersection(*own) else "what differs is the same in the clips"


def in_order(one: Question, heard: Timeline) -> str:
    """The answer is a list of things, the evidence a place for each in the order of the clips; none is elsewhere."""
    things = [set(stems(part)) for part in _LIST.split(one.answer)]
    things = [thing for thing in things if thing]
    if len(things) < 2 or len(things) != len(one.evidence):
        return "the order has not one place for each thing"
    if list(one.evidence) != sorted(one.evidence):
        return "the order is wrong"
    for thing, place in zip(things, one.evidence, strict=True):
        if not stands(thing, named_in(heard.during([place]))):
            return "the order is wrong"
        if any(thing <= told for clip, told in _named(heard).items() if clip != place[0]):
            return "what is asked for is in several clips"
    return ""


# What questions of each kind are checked for, beside what all are.
CHECKS: dict[str, tuple[Check, ...]] = {
    "which_clip": (one_clip,),
    "compare": (needed_clips,),
    "difference": (needed_clips, not_in_every_clip),
    "common": (needed_clips, in_every_clip),
    "order": (named_clips, in_order),
}


def _named(heard: Timeline) -> dict[int, set[str]]:
    """What the captions of each clip name."""
    clips = range(1, len(heard.seconds) + 1)
    return {clip: named_in(one.text for one in heard.moments if one.clip == clip) for clip in clips}
