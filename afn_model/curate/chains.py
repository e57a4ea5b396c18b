"""Chains of thought that are grounded in time: how a reply is read, what each is checked for without asking anybody,
its record, and how many pass which filter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from afn_model.curate.grounding import named_in, sentences, stands, stems
from afn_model.curate.questions import SLACK as AFTER_END
from afn_model.curate.questions import Question, answer_not_in_question, as_record, marked, misfit, options_alike
from afn_model.curate.replies import TEXT, array_of, object_of
from afn_model.curate.texts import runs_of, words_of
from afn_model.curate.timeline import Timeline
from afn_model.infer.stated_times import stated_times
from afn_model.prompt.questions import THINK
from afn_model.scoring.rewards import formatted
from afn_model.scoring.text import clauses
from afn_model.scoring.timestamps import match_times

SLACK = 1.0  # seconds that a time may be off
LONGEST = 120.0  # seconds of a step, above which it says of no place that something is heard there
SHARP = 30.0  # seconds of an event, above which no reward asks when it is
MOST = 100  # steps
GRAM = 4  # words of a sequence that may come again
TASK = "think_time"
_ENTERED, _LOST, _UNCHECKED = "chains into filter ", "chains lost by filter ", "chains not checked by filter "
_TAG = re.compile(r"</?\|?\w+(?:-\d+)?\|?>")
_TEXTUAL = r"(?:captions?|transcripts?|transcriptions?|annotations?|metadata)"
_READ = re.compile(
    rf"\b(?:the|these|this|those|each|both|another|next|first|second|last|given|provided|timed) {_TEXTUAL}\b"
    rf"|\b{_TEXTUAL} (?:says?|states?|mentions?|describes?|indicates?|notes?|shows?|reads?|at|for|from)\b"
    rf"|\b(?:according to|based on|as (?:described|stated|mentioned|written) in|in|from) {_TEXTUAL}\b"
    r"|\b(?:the|this|given|provided) (?:audio )?(?:description|summary|timeline|prompt)s?"
    r" (?:says?|states?|mentions?|describes?|indicates?|notes?|shows?|tells?|reads?)\b"
    r"|\b(?:according to|based on) the (?:audio |given |provided )*(?:text|description|summary|timeline|prompt)s?\b"
    r"|\bas (?:described|stated|written|noted) (?:above|in the (?:text|description|summary))\b"
    r"|\bthe (?:provided|given) (?:text|information|context)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ChainStep:
    """A step of a chain.

    Args:
        text: of it.
        start, end: seconds of what it is about; None of a step that concludes.
        event: words of the text that name what is heard; "" where none were given.
    """

    text: str
    start: float | None = None
    end: float | None = None
    event: str = ""

    @property
    def span(self) -> tuple[float, float] | None:
        return None if self.start is None or self.end is None else (self.start, self.end)

    def said(self) -> str:
        """The text, with its times before it where it does not state them itself, next to the event."""
        if self.start is None or self.end is None:
            return self.text
        if self.event:
            stated = match_times(self.text, [(self.event, self.middle)], self.within)[0] > 0
        else:
            stated = any(abs(one.start - self.start) <= SLACK for one in stated_times(self.text))
        return self.text if stated else f"[{self.start:.1f} s - {self.end:.1f} s] {self.text}"

    @property
    def middle(self) -> float:
        """Second in the middle of the span; 0 without one."""
        return sum(self.span or (0.0, 0.0)) / 2

    @property
    def within(self) -> float:
        """Seconds that a time which is stated for the step may be off its middle."""
        return (self.end or 0.0) - self.middle + SLACK


@dataclass(frozen=True)
class Chain:
    """A question, its answer, and the steps that lead to it."""

    question: Question
    steps: tuple[ChainStep, ...]

    @property
    def timed(self) -> list[ChainStep]:
        return [one for one in self.steps if one.span]

    @property
    def text(self) -> str:
        """The steps, a line each."""
        return "\n".join(one.said() for one in self.steps)


def chain_schema() -> dict[str, Any]:
    """The JSON that a writer replies with: {"chains": [{"question", "answer", "wrong", "steps": [{"text", "event",
    "start", "end"}]}]}. It asks for less than ``read_chain`` does, so that what a writer gets wrong is counted."""
    time = {"type": ["number", "null"]}
    step = {"text": TEXT, "event": {"type": "string"}, "start": time, "end": time}
    steps = array_of(object_of(step, optional=("event", "start", "end")))
    chain = {"question": TEXT, "answer": TEXT, "wrong": array_of(TEXT), "steps": steps}
    return object_of({"chains": array_of(object_of(chain, optional=("wrong",)))})


def read_chain(told: Mapping[str, Any]) -> tuple[Chain | None, str]:
    """(the chain of a reply as ``chain_schema`` has it, "") or (None, what is wrong with it). Every step but the last
    has times, at least two have; a question with options has none twice, and no tags are in the texts."""
    steps = [_step(one) for one in told["steps"]]
    if not steps or any(not one.text for one in steps):
        return None, "no steps"
    if len(steps) > MOST:
        return None, "too many steps"
    if any(one.span is None for one in steps[:-1]) or sum(one.span is not None for one in steps) < 2:
        return None, "steps without times"
    if any(not 0 < one.end - one.start <= LONGEST for one in steps if one.start is not None and one.end is not None):
        return None, "steps with impossible times"
    spans = tuple((1, *one.span) for one in steps if one.span)
    wrong = tuple(map(_line, told.get("wrong", ())))
    chain = Chain(Question(TASK, _line(told["question"]), _line(told["answer"]), wrong, spans), tuple(steps))
    asked = chain.question
    if not asked.question or not asked.answer:
        return None, "no question or no answer"
    nothing = Timeline((), (0.0,))
    checks = (tagged(chain), misfit((asked.question, *asked.options)))
    problem = next(filter(None, checks), "") or options_alike(asked, nothing) or answer_not_in_question(asked, nothing)
    return (None, problem) if problem else (chain, "")


def tagged(chain: Chain) -> str:
    """No tag is in a text, which would end a thought or stand for a recording."""
    steps = [text for one in chain.steps for text in (one.text, one.event)]
    texts = [chain.question.question, *chain.question.options, *steps]
    found = any(_TAG.search(text) for text in texts) or marked(texts) or not formatted(answered(chain), {})
    return "tags in the text" if found else ""


def _step(told: Mapping[str, Any]) -> ChainStep:
    start, end = told.get("start"), told.get("end")
    times = (None, None) if start is None or end is None else (float(start), float(end))
    return ChainStep(_line(told["text"]), *times, event=_line(told.get("event") or ""))


def _line(text: str) -> str:
    return " ".join(text.split())


def times_stand(chain: Chain, heard: Timeline, slack: float = SLACK) -> str:
    """Every time is inside of the recording, and what is told of it stands in a caption there, or up to ``slack``
    seconds away: a clause of each step with times, and a word of each sentence that states one."""
    seconds = heard.seconds[0]
    for start, end, text, whole in _claims(chain, seconds):
        if not 0 <= start <= end <= seconds + AFTER_END:
            return "times outside of the recording"
        there = heard.during([(1, start - slack, end + slack)])
        if not there:
            return "times at which nothing is heard"
        if not _stands(text, named_in(there), whole):
            return "nothing like it is heard at that time"
    return ""


def _claims(chain: Chain, seconds: float) -> Iterator[tuple[float, float, str, bool]]:
    """(start, end, what is told of it, whether it is a whole step)."""
    for one in chain.steps:
        if one.start is not None and one.end is not None:
            yield one.start, one.end, one.text, True
    for text in (*(one.text for one in chain.steps), chain.question.answer):
        for sentence in sentences(text):
            for time in stated_times(sentence, seconds):
                yield time.start, time.start if time.end is None else time.end, sentence, False


def _stands(text: str, there: set[str], whole: bool) -> bool:
    if not whole:
        named = stems(text)
        return not named or any(one in there for one in named)
    listed = [named for clause in clauses(text) if (named := stems(clause))]
    return any(stands(named, there) for named in listed)


def evidence_apart(chain: Chain, apart: float = 30.0) -> str:
    """Two steps have so many seconds between them."""
    spans = [one.span for one in chain.timed if one.span]
    far = bool(spans) and max(start for start, _ in spans) - min(end for _, end in spans) >= apart
    return "" if far else "evidence close together"


def length_fits(chain: Chain, least: int = 150, most: int = 900) -> str:
    words = sum(len(words_of(one.text)) for one in chain.steps)
    return "too short" if words < least else "too long" if words > most else ""


def repeats(chain: Chain, share: float = 0.2) -> str:
    """Less than a share of its sequences of four words came before in it."""
    return "repetition" if repetition(" ".join(one.text for one in chain.steps)) >= share else ""


def repetition(text: str) -> float:
    """Share of the sequences of four words of a text that came before in it: 1 − different / all; 0 of none."""
    runs = runs_of(words_of(text), GRAM)
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def not_read(chain: Chain) -> str:
    """Nothing tells that the writer has read captions: a listener has none."""
    texts = (chain.question.question, *chain.question.options, *(one.text for one in chain.steps))
    return "speaks of captions" if any(_READ.search(text) for text in texts) else ""


def answered(chain: Chain) -> str:
    """What a model that thinks should say."""
    return f"<think>{chain.text}</think><answer>{chain.question.answer}</answer>"


def as_thought(chain: Chain, subject: str) -> dict[str, Any]:
    """A chain as a product that ``export`` makes a record of.

    Its rewards are for the format, the answer, and for times of events that are told with their names: of these only
    those that the chain itself earns in full. A caption covers a part of some seconds, so that the time of an event is
    the middle of its step, and may be off by half of the longest such step and a second.
    """
    product: dict[str, Any] = as_record(chain.question, subject, axis="cot")
    asked, reply = product["messages"][0]["content"], answered(chain)
    product["messages"] = [
        {"role": "user", "content": f"{asked}\n{THINK}"},
        {"role": "assistant", "content": reply},
    ]
    rewards: list[dict[str, Any]] = [{"kind": "format"}, {"kind": "exact", "answer": chain.question.answer}]
    if events := _events(chain, reply):
        within = max(one.within for one in events)
        listed = [[one.event, round(one.middle, 3)] for one in events]
        rewards.append({"kind": "timestamps", "events": listed, "within": round(within, 3)})
    return product | {"rewards": rewards}


def _events(chain: Chain, reply: str) -> list[ChainStep]:
    """Steps whose events the reply tells with their times, as often as it tells of them."""
    by_name: dict[str, list[ChainStep]] = {}
    for one in chain.timed:
        if stems(one.event) and one.within <= SHARP / 2 + SLACK:
            by_name.setdefault(one.event.lower(), []).append(one)
    found = []
    for steps in by_name.values():
        events = [(one.event, one.middle) for one in steps]
        if match_times(reply, events, max(one.within for one in steps)) == (len(steps), len(steps)):
            found += steps
    return found


def entered(name: str) -> str:
    """Key of a tally: chains that a filter gets."""
    return f"{_ENTERED}{name}"


def lost_by(name: str, why: str) -> str:
    """Key of a tally: chains that a filter takes out, and why."""
    return f"{_LOST}{name}: {why}"


def unchecked(name: str) -> str:
    """Key of a tally: chains that a filter got and let pass, as it has no annotator."""
    return f"{_UNCHECKED}{name}"


@dataclass(frozen=True)
class FilterYield:
    """What a filter has let pass: chains that it got, that it let pass, and whether it checked them."""

    name: str
    entered: int
    left: int
    checked: bool = True

    @property
    def share(self) -> float:
        return self.left / self.entered if self.entered else 0.0


def yields(tally: Mapping[str, int], order: Sequence[str]) -> list[FilterYield]:
    """The yield of every filter from a tally of rows, in the order in which they run; with the whole as the last.

    Args:
        tally: as ``status`` adds it up for the stage.
        order: names of the filters.
    """
    found = []
    for name in order:
        taken = sum(count for key, count in tally.items() if key.startswith(f"{_LOST}{name}: "))
        came = tally.get(entered(name), 0)
        found.append(FilterYield(name, came, came - taken, not tally.get(unchecked(name))))
    for one, following in pairwise(found):
        if one.left != following.entered:
            raise ValueError(f"filter {one.name!r} left {one.left} chains, and {following.entered} came to the next")
    return [*found, FilterYield("all filters", found[0].entered, found[-1].left)] if found else []
