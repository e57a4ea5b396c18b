"""Questions that a writer makes of captions: how a reply is read, what each is checked for, and its record."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.checks import is_whole
from afn_model.curate import identity
from afn_model.curate.grounding import named_in, stands, stems
from afn_model.curate.replies import NUMBER, TEXT, array_of, object_of
from afn_model.curate.texts import place_of, units_of
from afn_model.curate.timeline import Span, Timeline
from afn_model.infer.time_words import SPELLED
from afn_model.prompt.questions import choose
from afn_model.scoring.text import normalise

ALIKE = 0.8  # share of words in common, above which two questions are one
SLACK = 0.5  # seconds that a time may be outside of the clip
LONGER = 3.0  # times as many words as the shortest option that the longest may have
MOST = 20  # options
MANY = 50  # questions of a reply that are read
LETTERS = 2000  # of a text
_YES_NO = frozenset(("yes", "no"))
_ANY_KIND = frozenset(("none", "never", "unknown", "not heard"))  # may stand beside numbers and beside texts
_AMOUNT = rf"(?:[\d.,:/%]*\d[\d.,:/%]*|zero|{SPELLED}|hundred|once|twice)"
_NUMBER = re.compile(
    rf"(?:about |around |at |from |exactly |only )?{_AMOUNT}(?:(?: ?[-–—] ?| to | and | or ){_AMOUNT})?"
    r"(?: ?(?:times?|seconds?|secs?|s|minutes?|mins?|hours?|speakers?|people|persons?|voices?|bpm|k?hz|db|beats?))?"
)
_LABEL = re.compile(r"\(?[A-Za-z][).:]\s")  # the writer's own letter of an option
_OTHERS = re.compile(r"\b(?:all|none|both|neither|either|any) of (?:the above|the others?|these|those|them)\b", re.I)
_CAPTIONS = re.compile(r"\b(?:captions?|captioned|annotations?|annotators?|transcripts?)\b", re.I)
# Tokens of models' own, broken characters, and those that are not seen or turn the direction of writing.
_MARKS = re.compile(r"<\||</?(?:sound|audio)|[\ud800-\udfff\ufffd\x00-\x08\x0e-\x1f\x7f\u202a-\u202e]")
_ARTICLES = ("a", "an", "the")
_OF_NOTES = ("major", "minor", "sharp", "flat", "chord")  # after which an A is none


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Args:
        kind: of question.
        question, answer: texts.
        wrong: other options; none if it is an open question.
        evidence: where in the clips the answer is to be heard, in the order that the reply has them.
        relation: in time, of the last span of evidence to those before it; "" where the reply names none.
    """

    kind: str
    question: str
    answer: str
    wrong: tuple[str, ...] = ()
    evidence: tuple[Span, ...] = ()
    relation: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        return (self.answer, *self.wrong)


Check = Callable[[Question, Timeline], str]  # what is wrong, in few words that are counted; "" where nothing is


def schema(
    kinds: Sequence[str], *, options: int | None = None, clips: bool = False, relations: Sequence[str] = ()
) -> dict[str, Any]:
    """The JSON that a writer replies with: {"questions": [{"kind", "question", "answer", "wrong", "evidence"}]}.

    Args:
        kinds: that a question may be of.
        options: wrong ones of each question; None leaves it open, 0 asks for none.
        clips: evidence names the clip that it is in.
        relations: each question names one of them, as its "relation".
    """
    properties: dict[str, Any] = {
        "kind": {"type": "string", "enum": list(kinds)},
        "question": TEXT,
        "answer": TEXT,
        "wrong": array_of(TEXT) if options is None else array_of(TEXT, minItems=options, maxItems=options),
        "evidence": array_of(span_schema(clips), minItems=1),
    }
    properties |= {"relation": {"type": "string", "enum": list(relations)}} if relations else {}
    return object_of({"questions": array_of(object_of(properties, optional=() if options else ("wrong",)))})


def span_schema(clips: bool) -> dict[str, Any]:
    """The JSON of a place of evidence."""
    clip = {"clip": {"type": "integer", "minimum": 1}} if clips else {}
    return object_of({**clip, "start": NUMBER, "end": NUMBER})


def read_questions(data: Mapping[str, Any]) -> list[Question]:
    """The questions of a reply that is as ``schema`` says. What it did not ask for is read with care: a clip that is no
    number is 0, which is no clip."""
    return [read_question(one, one["kind"]) for one in data["questions"]]


def read_question(told: Mapping[str, Any], kind: str) -> Question:
    """A question of a reply."""
    return Question(
        kind,
        " ".join(told["question"].split()),
        " ".join(told["answer"].split()),
        tuple(" ".join(text.split()) for text in told.get("wrong", ())),
        tuple((_clip(span), _seconds(span["start"]), _seconds(span["end"])) for span in told["evidence"]),
        str(told.get("relation", "")),
    )


def _clip(span: Mapping[str, Any]) -> int:
    told = span.get("clip", 1)
    return told if is_whole(told) else 0


def _seconds(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def well_put(one: Question, heard: Timeline) -> str:
    """It has words and nothing that prompts are made of, and is about what is heard, not about what the writer read."""
    if wrong := misfit((one.question, *one.options)):
        return wrong
    if not units_of(one.question) or not units_of(one.answer):
        return "an empty question or answer"
    return tells_of_captions((one.question, *one.options))


def misfit(texts: Iterable[str]) -> str:
    """What is wrong with texts that no record should have: they are longer than ``LETTERS``, or ``marked``."""
    listed = list(texts)
    return "a text that is too long" if any(len(text) > LETTERS for text in listed) else marked(listed)


def marked(texts: Iterable[str]) -> str:
    """What is wrong with texts that have marks of prompts, such as places of recordings, or broken characters."""
    return "marks of prompts" if any(map(_MARKS.search, texts)) else ""


def tells_of_captions(texts: Iterable[str]) -> str:
    """What is wrong with texts that name what a listener has not read."""
    return "it tells of captions" if any(map(_CAPTIONS.search, texts)) else ""


def evidence_inside(one: Question, heard: Timeline) -> str:
    for clip, start, end in one.evidence:
        if not 1 <= clip <= len(heard.seconds) or not 0 <= start < end <= heard.seconds[clip - 1] + SLACK:
            return "evidence outside of the recording"
    return "" if one.evidence else "no evidence"


def answer_in_evidence(one: Question, heard: Timeline) -> str:
    """What is sought is in the captions where the evidence is."""
    named, there = sought(one), named_in(heard.during(one.evidence))
    return "" if named and stands(named, there) else "the evidence does not have the answer"


def sought(one: Question) -> list[str]:
    """What the answer names; where it names nothing, as yes and numbers do, what the question does."""
    return (stems(one.answer) if kind_of_option(one.answer) == "text" else []) or stems(one.question)


def options_alike(one: Question, heard: Timeline) -> str:
    """Options are different, of one kind and about one length, so that their form does not tell the answer. None has a
    letter of its own or speaks of the others, which come in another order."""
    if not one.wrong:
        return ""
    if len(one.options) > MOST:
        return "too many options"
    words = [units_of(option) for option in one.options]
    if any(map(_LABEL.match, one.options)) or any(map(_OTHERS.search, one.options)):
        return "options with letters or of others"
    if not all(words) or len({_same(option) for option in one.options}) < len(words):
        return "options twice"
    if len({kind for option in one.options if (kind := kind_of_option(option))}) > 1:
        return "options of different kinds"
    lengths = sorted(map(len, words))
    return "options of different lengths" if lengths[-1] > max(LONGER * lengths[0], lengths[0] + 3) else ""


def answer_not_in_question(one: Question, heard: Timeline) -> str:
    """The question does not say its answer, unless it names what else that may be, or it is yes, no or a number."""
    asked = units_of(one.question)
    if kind_of_option(one.answer) != "text" or not _within(one.answer, asked):
        return ""
    offered = any(_within(option, asked) for option in one.wrong) or (not one.wrong and "or" in asked)
    return "" if offered else "the question tells the answer"


GENERAL: tuple[Check, ...] = (well_put, evidence_inside, options_alike, answer_not_in_question, answer_in_evidence)


def sift(
    given: Iterable[Question],
    heard: Timeline,
    tally: Counter[str],
    further: Mapping[str, Sequence[Check]] | None = None,
    before: Sequence[Question] = (),
) -> list[Question]:
    """The questions that pass every check and are not like an earlier one.

    Args:
        given: questions about a recording, of which the first ``MANY`` are read.
        heard: its captions.
        tally: counts what is left out: "questions lost: evidence outside of the recording".
        further: checks by kind of question, after those of all.
        before: other questions about the same recording.
    """
    kept, given = list(before), list(given)
    if len(given) > MANY:
        tally[f"questions lost: beyond the first {MANY}"] += len(given) - MANY
    for one in given[:MANY]:
        checks = (*GENERAL, *(further or {}).get(one.kind, ()))
        wrong = next(filter(None, (check(one, heard) for check in checks)), "")
        if wrong := wrong or like_one_of(one.question, kept):
            tally[f"questions lost: {wrong}"] += 1
        else:
            kept.append(one)
    return kept[len(before) :]


def like_one_of(question: str, earlier: Iterable[Question]) -> str:
    """What is wrong with a question that was asked before."""
    return "like an earlier one" if any(alike(question, one.question) > ALIKE for one in earlier) else ""


def alike(one: str, other: str) -> float:
    """Words that two texts have in common, of all that they have."""
    first, second = set(units_of(one)), set(units_of(other))
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
            "evidence": evidence_of(one),
        },
    }


def evidence_of(one: Question) -> list[dict[str, Any]]:
    """The evidence as records have it."""
    return [{"audio": clip, "start": start, "end": end} for clip, start, end in one.evidence]


def kind_of_option(option: str) -> str:
    """ "" where it may stand beside options of any kind."""
    text = option.strip().lower().rstrip(".")
    if text in _ANY_KIND:
        return ""
    return "yes or no" if text in _YES_NO else "number" if _NUMBER.fullmatch(text) else "text"


def _same(option: str) -> tuple[str, ...]:
    """What options have in common that nobody would tell apart: by case, spaces, articles and punctuation, but for the
    signs that notes and amounts have."""
    signs = re.findall(r"[#♯♭+%/]|(?<!\w)[-−](?=\d)|(?<=\d)[.:,](?=\d)", normalise(option))
    return (*words_named(option), *signs)


def words_named(option: str) -> list[str]:
    """An option's words, without an article before them."""
    words = units_of(option)
    article = len(words) > 1 and words[0] in _ARTICLES and words[1] not in _OF_NOTES
    return words[1:] if article else words


def _within(option: str, asked: Sequence[str]) -> bool:
    """Whether an option's words follow one another in a question's."""
    return place_of(words_named(option), asked) is not None
