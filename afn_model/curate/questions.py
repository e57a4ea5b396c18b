"""Questions that a writer makes of captions: how a reply is read, what each is checked for, and its record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.curate import identity
from afn_model.curate.grounding import SHARE, stems
from afn_model.curate.texts import words_of
from afn_model.curate.timeline import Span, Timeline
from afn_model.prompt.questions import choose

ALIKE = 0.8  # share of words in common, above which two questions are one
SLACK = 0.5  # seconds that a time may be outside of the clip
LONGER = 3.0  # times as many words as the shortest option that the longest may have
_YES_NO = frozenset(("yes", "no"))
_NUMBER = re.compile(
    r"(?:about |around )?(?:[\d.,:]+|zero|one|two|three|four|five|six|seven|eight|nine|ten|once|twice|none|never)"
    r"(?: times| seconds| s| minutes| speakers| people)?"
)


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Args:
        kind: of question.
        question, answer: texts.
        wrong: other options; none if it is an open question.
        evidence: where in the clips the answer is to be heard, in the order that the reply has them.
    """

    kind: str
    question: str
    answer: str
    wrong: tuple[str, ...] = ()
    evidence: tuple[Span, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        return (self.answer, *self.wrong)


Check = Callable[[Question, Timeline], str]  # what is wrong, in few words that are counted; "" where nothing is


def schema(kinds: Sequence[str], *, options: int | None = None, clips: bool = False) -> dict[str, Any]:
    """The JSON that a writer replies with: {"questions": [{"kind", "question", "answer", "wrong", "evidence"}]}.

    Args:
        kinds: that a question may be of.
        options: wrong ones of each question; None leaves it open, 0 asks for none.
        clips: evidence names the clip that it is in.
    """
    text = {"type": "string", "minLength": 1}
    span = {"start": {"type": "number"}, "end": {"type": "number"}}
    span |= {"clip": {"type": "integer", "minimum": 1}} if clips else {}
    of_evidence = {"type": "object", "required": sorted(span), "properties": span}
    wrong: dict[str, Any] = {"type": "array", "items": text}
    wrong |= {"minItems": options, "maxItems": options} if options is not None else {}
    properties = {
        "kind": {"type": "string", "enum": list(kinds)},
        "question": text,
        "answer": text,
        "wrong": wrong,
        "evidence": {"type": "array", "items": of_evidence, "minItems": 1},
    }
    required = ["kind", "question", "answer", "evidence", *["wrong"] * bool(options)]
    one = {"type": "object", "required": required, "properties": properties}
    return {"type": "object", "required": ["questions"], "properties": {"questions": {"type": "array", "items": one}}}


def read_questions(data: Mapping[str, Any]) -> list[Question]:
    """The questions of a reply that is as ``schema`` says."""
    return [
        Question(
            one["kind"],
            " ".join(one["question"].split()),
            " ".join(one["answer"].split()),
            tuple(" ".join(text.split()) for text in one.get("wrong", ())),
            tuple((int(span.get("clip", 1)), float(span["start"]), float(span["end"])) for span in one["evidence"]),
        )
        for one in data["questions"]
    ]


def evidence_inside(one: Question, heard: Timeline) -> str:
    for clip, start, end in one.evidence:
        if clip > len(heard.seconds) or not 0 <= start < end <= heard.seconds[clip - 1] + SLACK:
            return "evidence outside of the recording"
    return "" if one.evidence else "no evidence"


def answer_in_evidence(one: Question, heard: Timeline) -> str:
    """The answer is in the captions where the evidence is; where it names nothing, as yes and numbers do, what is asked
    about is."""
    there = {stem for text in heard.during(one.evidence) for stem in stems(text)}
    named = stems(one.answer) or stems(one.question)
    enough = named and sum(name in there for name in named) >= SHARE * len(named)
    return "" if enough else "the evidence does not have the answer"


def options_alike(one: Question, heard: Timeline) -> str:
    """Options are different, of one kind and about one length, so that their form does not tell the answer."""
    words = [words_of(option) for option in one.options]
    if len({tuple(option) for option in words}) < len(words) or not all(words):
        return "options twice"
    if len({_kind(option) for option in one.options}) > 1 and one.wrong:
        return "options of different kinds"
    lengths = sorted(map(len, words))
    return "options of different lengths" if lengths[-1] > max(LONGER * lengths[0], lengths[0] + 3) else ""


def answer_not_in_question(one: Question, heard: Timeline) -> str:
    asked, answer = " ".join(words_of(one.question)), " ".join(words_of(one.answer))
    told = len(answer.split()) > 1 and f" {answer} " in f" {asked} "
    return "the question tells the answer" if told else ""


GENERAL: tuple[Check, ...] = (evidence_inside, options_alike, answer_not_in_question, answer_in_evidence)


def sift(
    given: Iterable[Question],
    heard: Timeline,
    tally: Counter[str],
    further: Mapping[str, Sequence[Check]] | None = None,
    before: Sequence[Question] = (),
) -> list[Question]:
    """The questions that pass every check and are not like an earlier one.

    Args:
        given: questions about a recording.
        heard: its captions.
        tally: counts what is left out: "questions lost: evidence outside of the recording".
        further: checks by kind of question, after those of all.
        before: other questions about the same recording.
    """
    kept = list(before)
    for one in given:
        checks = (*GENERAL, *(further or {}).get(one.kind, ()))
        wrong = next(filter(None, (check(one, heard) for check in checks)), "")
        if not wrong and any(alike(one.question, other.question) > ALIKE for other in kept):
            wrong = "like an earlier one"
        if wrong:
            tally[f"questions lost: {wrong}"] += 1
        else:
            kept.append(one)
    return kept[len(before) :]


def alike(one: str, other: str) -> float:
    """Words that two texts have in common, of all that they have."""
    first, second = set(words_of(one)), set(words_of(other))
    return len(first & second) / max(1, len(first | second))


def as_record(one: Question, subject: str, *, axis: str, audios: Sequence[Mapping[str, Any]] = ({},)) -> dict[str, Any]:
    """A question as a product that ``export`` makes a record of: multiple choice where it has options, whose order
    depends on the question alone.

    Args:
        one: the question.
        subject: what it is about, so that equal questions about two recordings have their options in different orders.
        axis: of the data.
        audios: places that are heard, as ``Export`` reads them.
    """
    order = sorted(one.options, key=lambda option: identity.of("option", subject, one.question, option))
    text = choose(one.question, order) if one.wrong else one.question
    spans = [{"audio": clip, "start": start, "end": end} for clip, start, end in one.evidence]
    return {
        "axis": axis,
        "task": one.kind,
        "audios": [dict(audio) for audio in audios],
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": one.answer}],
        "rewards": [{"kind": "exact", "answer": one.answer}] if one.wrong else [],
        "truth": {
            "answer": one.answer,
            "question": one.question,
            "options": order if one.wrong else [],
            "evidence": spans,
        },
    }


def _kind(option: str) -> str:
    text = option.strip().lower().rstrip(".")
    return "yes or no" if text in _YES_NO else "number" if _NUMBER.fullmatch(text) else "text"
