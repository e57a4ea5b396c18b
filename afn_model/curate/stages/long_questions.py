"""Questions about whole recordings, of the three kinds that captions of long audio are good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from afn_model.checks import number, shown, whole
from afn_model.curate.grounding import named_in, stems
from afn_model.curate.questions import MOST, Check, Question, answer_in_evidence, kind_of_option, sought
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking_questions import QuestionPart, QuestionStage
from afn_model.curate.texts import units_of
from afn_model.curate.timeline import Span, Timeline, timeline_of
from afn_model.infer.stated_times import stated_times

KINDS = ("needle", "temporal", "subscene")
RELATIONS = {"before": 2, "after": 2, "between": 3, "first": 2, "last": 2}  # and the spans of evidence that each takes
OPPOSITE = {"before": "after", "after": "before", "first": "last", "last": "first"}
TOLERANCE = 0.5  # seconds that what comes later may begin before the end of what comes earlier
NEAR = 1.0  # seconds that a time in a question may be away from the evidence
PLACE = 0.5  # share of the recording that a needle may be heard in
SCENE = 0.9  # share of the recording that a scene may be
_BEGINNING = frozenset(("beginning", "start", "starts", "opening", "opens", "begins"))
_ENDING = frozenset(("end", "ending", "ends", "closing", "closes"))


@dataclass(frozen=True)
class LongQuestions(QuestionStage):
    """Writes ``long_questions``: products about the whole recording, of the axis "long"; one request for each kind.

    Args:
        kinds: of questions; other kinds than these are often made up where the audio is long.
        pairs: questions that are asked for, of each kind.
        shortest: seconds, below which a recording has none.
        options: wrong ones of each question; with 0 the questions are open.
    """

    name: ClassVar[str] = "long-questions"
    reads: ClassVar[tuple[str, ...]] = ("merged", "segments", "source_id", "seconds")
    writes: ClassVar[tuple[str, ...]] = ("long_questions",)
    resources: ClassVar[Resources] = Resources(batch=4, seconds=1, calls=12, tokens_in=136_000, tokens_out=10_000)

    kinds: tuple[str, ...] = KINDS
    pairs: int = 4
    shortest: float = 30.0
    options: int = 3

    def __post_init__(self):
        if wrong := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"kinds are some of {', '.join(KINDS)}, got {shown(wrong[0])}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds: each once, and one at least")
        whole(self.pairs, "pairs", 1, 50)
        whole(self.options, "options", 0, MOST - 1)
        if number(self.shortest, "shortest") < 0:
            raise ValueError(f"shortest is seconds from 0, got {shown(self.shortest)}")
        super().__post_init__()

    def prompts(self) -> tuple[str, ...]:
        return self.kinds

    def parts(self, row: Row, context: Context) -> list[QuestionPart]:
        heard = timeline_of(row)
        if self._why_none(row, heard):
            return []
        told = {"seconds": f"{row['seconds']:.1f}", "pairs": str(self.pairs), "wrong": str(self.options or "no")}
        return [
            QuestionPart(
                subject=row["source_id"],
                heard=heard,
                prompt=kind,
                kinds=(kind,),
                axis="long",
                data=told,
                options=self.options,
                further=CHECKS,
                relations=tuple(RELATIONS) if kind == "temporal" else (),
            )
            for kind in self.kinds
        ]

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        found = super().run(rows, context)
        for at, (row, one) in enumerate(zip(rows, found, strict=True)):
            if isinstance(one, Kept) and (why := self._why_none(row, timeline_of(row))):
                found[at] = replace(one, tally={**one.tally, f"recordings without questions: {why}": 1})
        return found

    def _why_none(self, row: Row, heard: Timeline) -> str:
        if row["seconds"] < self.shortest:
            return "too short"
        return "too few captions" if len(heard.moments) < 2 else ""


def needle_once(one: Question, heard: Timeline) -> str:
    """What is sought is heard in one place."""
    if len(one.evidence) != 1:
        return "a needle in several places"
    _, start, end = one.evidence[0]
    if end - start > PLACE * heard.seconds[0]:
        return "a needle in most of the recording"
    named = set(sought(one))
    again = any(named <= set(stems(text)) for text in heard.outside(one.evidence))
    return "a needle that is heard again" if again else ""


def wrong_options_absent(one: Question, heard: Timeline) -> str:
    """No wrong option is in the captions of the evidence."""
    there, right = [set(stems(text)) for text in heard.during(one.evidence)], set(stems(one.answer))
    for option in one.wrong:
        named = set(stems(option)) if kind_of_option(option) == "text" else set()
        if named - right and any(named <= said for said in there):
            return "a wrong option is right too"
    return ""


def order_agrees(one: Question, heard: Timeline) -> str:
    """The evidence, of which the last span is the answer's, is in the order that the reply names, and the question does
    not ask for the opposite one."""
    *others, own = one.evidence
    needed, given = RELATIONS.get(one.relation, 0), len(one.evidence)
    if given < needed or not needed or (given > needed and one.relation not in ("first", "last")):
        return "an order of too few things or too many"
    asked, opposite = set(units_of(one.question)), OPPOSITE.get(one.relation, "")
    if opposite in asked and one.relation not in asked:
        return "a question for the opposite order"
    if one.relation == "between":
        earlier, later = sorted(others, key=lambda span: span[1:])
        agrees = _comes(earlier, own) and _comes(own, later)
    elif one.relation in ("before", "first"):
        agrees = all(_comes(own, other) for other in others)
    else:
        agrees = all(_comes(other, own) for other in others)
    if not agrees:
        return "an order that the evidence does not have"
    return answer_in_evidence(replace(one, evidence=(own,)), heard)


def order_in_captions(one: Question, heard: Timeline) -> str:
    """What the question compares with is heard where the reply says, and only there; no other option comes before the
    first or after the last."""
    *others, (_, start, end) = one.evidence
    if one.relation in ("first", "last"):
        beyond = (1, 0.0, start) if one.relation == "first" else (1, end, heard.seconds[0] + TOLERANCE)
        there = [
            set(stems(moment.text))
            for moment in heard.moments
            if moment.overlaps(beyond) and not moment.overlaps(one.evidence[-1])
        ]
        named = [set(stems(option)) for option in one.wrong if kind_of_option(option) == "text"]
        sooner = any(option and option <= said for option in named for said in there)
        return f"another option is heard {'before' if one.relation == 'first' else 'after'}" if sooner else ""
    asked = set(stems(one.question))
    for other in others:
        named = asked & named_in(heard.during([other]))
        if not named:
            return "the question does not name what the evidence has"
        if any(named <= set(stems(text)) for text in heard.outside([other])):
            return "what it compares with is heard again"
    return ""


def scene_named(one: Question, heard: Timeline) -> str:
    """A scene is one span, shorter than the whole, and the question says which: by its times, or by what is heard where
    it begins or ends."""
    if len(one.evidence) != 1:
        return "a scene of several spans"
    (_, start, end), seconds = one.evidence[0], heard.seconds[0]
    if end - start > SCENE * seconds:
        return "a scene that is the whole recording"
    if times := stated_times(one.question, seconds):
        spans = [(time.start, time.end) for time in times if time.end is not None]
        moments = [time.start for time in times if time.end is None]
        agree = all(abs(first - start) <= NEAR and abs(last - end) <= NEAR for first, last in spans)
        agree = agree and all(start - NEAR <= moment <= end + NEAR for moment in moments)
        return "" if agree else "a scene at other times than the evidence"
    asked = set(units_of(one.question))
    if (start <= NEAR and asked & _BEGINNING) or (end >= seconds - NEAR and asked & _ENDING):
        return ""
    return (
        ""
        if named_in(_edges(heard, start, end)) & set(stems(one.question))
        else "a scene that the question does not name"
    )


def _edges(heard: Timeline, start: float, end: float) -> list[str]:
    """Captions of where a span begins and ends, and of what is next to it."""
    before = [moment.text for moment in heard.moments if moment.end <= start + TOLERANCE][-1:]
    after = [moment.text for moment in heard.moments if moment.start >= end - TOLERANCE][:1]
    inside = heard.during([(1, start, end)])
    return [*before, *inside[:1], *inside[-1:], *after]


def _comes(earlier: Span, later: Span) -> bool:
    """Whether a span is before another one, beyond the tolerance."""
    apart = sum(later[1:]) / 2 - sum(earlier[1:]) / 2
    return apart > TOLERANCE and later[1] >= earlier[2] - TOLERANCE


# By kind of question, beside those of all.
CHECKS: Mapping[str, Sequence[Check]] = {
    "needle": (needle_once, wrong_options_absent),
    "temporal": (order_agrees, order_in_captions),
    "subscene": (scene_named, wrong_options_absent),
}
