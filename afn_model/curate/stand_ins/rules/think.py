"""Chains of thought from the captions that a request holds, most of them with an error that a filter is there for, and
the answers of those who check them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.curate import identity
from afn_model.curate.grounding import named_in, stems
from afn_model.curate.stand_ins.rules import captions
from afn_model.curate.stand_ins.rules.rule_input import Rule, RuleInput, moments_in, options_in

# What the writer does, each in a sixteenth of its chains; in the other five sixteenths nothing is wrong.
FLAWS = (
    "no times",
    "wrong time",
    "close together",
    "too short",
    "repetitive",
    "the caption says",
    "guessable",
    "concludes otherwise",
    "wrong answer",
    "hallucinated",
    "hallucinated once",
)
DEAF = 64  # of so many steps that are heard one is said not to be
NEVER = ("a volcano erupts under water", "a whale sings an opera", "a rocket lands on the roof")
_EVENT = re.compile(r"\ban? [\w ]{1,30}? (?:speaks|is heard)\b", re.IGNORECASE)
_LAST = re.compile(r'heard last is "([^"]+)"')
_LONG = 8  # steps of a chain, at most
_OPENINGS = (
    "which makes this the first place to keep in mind before anything else is compared with it",
    "and nothing of the kind came up any earlier, so that the order of the two is already settled here",
    "although by itself that decides nothing yet, since any candidate could still return afterwards",
    "so one more candidate has been met, and whatever was noted until now moves further into the past",
    "a moment worth holding against the earlier ones, because only its position in the whole counts",
    "leaving fewer possibilities open than there were a minute ago, if the pace stays as it is",
    "while the question asks for the end and not for what is loudest or goes on longest",
    "and with this the list of what has turned up grows by another entry that must be ranked",
)
_ENDINGS = (
    "I keep the moment and move on to whatever follows, listening for a return of the same thing.",
    "Comparing both positions, the later one wins for now, but it has to survive the remaining minutes.",
    "Until the final part has been reached no option is ruled out merely because it appeared early.",
    "It would be a mistake to stop here, given how much of the recording is still to come.",
    "My ranking therefore changes: what led before drops back one place, and this takes the lead.",
    "That fits the impression so far, namely that several events alternate without a fixed pattern.",
    "Should it never come back, its place in the order is exactly the one that was just stated.",
    "Hardly anything remains after this point, which is why it weighs more than all that precedes it.",
)


@dataclass(frozen=True)
class CaptionedPart:
    """A part of a recording, with the events that its caption names."""

    start: float
    end: float
    events: tuple[str, ...]


def think(asked: RuleInput) -> dict[str, Any]:
    """Chains about which of some events is heard last. A hash of the captions draws for each whether something is
    wrong with it: each of the eleven ``FLAWS`` in a sixteenth of them."""
    parts = captioned(asked.text)
    count = int((re.findall(r"^Questions to write: (\d+)\.$", asked.text, re.MULTILINE) or ["1"])[-1])
    last = {event: place for place, part in enumerate(parts) for event in part.events}
    ranked = sorted(last, key=lambda event: (last[event], event))
    ranked = [event for at, event in enumerate(ranked) if at + 1 == len(ranked) or last[event] < last[ranked[at + 1]]]
    if len(ranked) < 2:
        return {"chains": []}
    told = []
    for number in range(min(count, len(ranked) - 1)):
        drawn = identity.number("chain", asked.text, number) % 16
        flaw = FLAWS[drawn] if drawn < len(FLAWS) else ""
        told.append(chain(parts, ranked[: len(ranked) - number], flaw, number))
    return {"chains": told}


def chain(parts: Sequence[CaptionedPart], ranked: Sequence[str], flaw: str, number: int = 0) -> dict[str, Any]:
    """A chain with a flaw, or with none if it is "".

    Args:
        parts: of the recording.
        ranked: two events at least, by where they are heard for the last time.
        flaw: one of ``FLAWS``.
        number: of the chain about this recording.
    """
    answer, wrong = ranked[-1], list(ranked[-4:-1])
    steps = _steps(parts, [answer, *wrong], flaw)
    conclusion = wrong[-1] if flaw in ("concludes otherwise", "wrong answer") else answer
    close = f'Of all these moments the one furthest back counts, so what is heard last is "{conclusion}".'
    if flaw == "wrong answer":
        answer, wrong = conclusion, [one for one in (*wrong, answer) if one != conclusion]
    if flaw == "guessable":
        wrong = list(NEVER)
    asked = ("Which of these", "Among the following events, which one")[number % 2]
    steps.append({"text": close, "start": None, "end": None})
    return {"question": f"{asked} is heard last?", "answer": answer, "wrong": wrong, "steps": steps}


def _steps(parts: Sequence[CaptionedPart], named: Sequence[str], flaw: str) -> list[dict[str, Any]]:
    telling = [part for part in parts if set(part.events) & set(named)]
    every = max(1, -(-len(telling) // _LONG))
    chosen = [*telling[:-1:every], telling[-1]]
    if flaw == "close together":
        chosen = [telling[-1]] * min(_LONG, max(4, len(chosen)))
    if flaw == "too short":
        chosen = [chosen[0], chosen[-1]]
    found = []
    for at, part in enumerate(chosen):
        start, end = part.start, part.end
        if flaw == "wrong time" and at == 0:
            start, end = parts[-1].end + 40, parts[-1].end + 45
        heard = ", then ".join(part.events)
        text = f"From {start:.1f} to {end:.1f} seconds {heard}, {_OPENINGS[at % 8]}."
        if flaw == "the caption says" and at == 1:
            text = f"The caption says that from {start:.1f} to {end:.1f} seconds {heard}, {_OPENINGS[at]}."
        if flaw == "hallucinated" or (flaw == "hallucinated once" and at == 0):
            text = f"From {start:.1f} to {end:.1f} seconds {heard}, then a foghorn is heard, {_OPENINGS[at % 8]}."
        text += "" if flaw == "too short" else f" {_ENDINGS[0 if flaw == 'repetitive' else at % 8]}"
        text += f" {_ENDINGS[0]}" if flaw == "repetitive" else ""
        times = {} if flaw == "no times" else {"start": start, "end": end}
        found.append({"text": text, "event": part.events[0], **times})
    return found


def step_heard(asked: RuleInput) -> str:
    """Yes where all events that the step names are heard; of ``DEAF`` such steps one gets a No."""
    there = named_in(captions.caption(RuleInput("", [[one]])) for one in asked.first)
    named = [stems(event) for event in _events(asked.text)]
    right = all(set(one) <= there for one in named)
    deaf = identity.number("heard", asked.text) % DEAF == 0
    return "Yes" if right and not deaf else "No"


def step_rewrite(asked: RuleInput) -> str:
    """The step without the events that the captions of its part do not have."""
    there = {event for part in captioned(asked.text) for event in part.events}
    (step,) = [line for line in asked.text.splitlines() if line.startswith(("From ", "The caption says that from "))]
    for event in _events(step):
        if event not in there:
            step = step.replace(f", then {event}", "").replace(f"{event}, then ", "")
    return f"{step} So much is certain."


def answer_from_chain(asked: RuleInput) -> str:
    """What is concluded."""
    return (_LAST.findall(asked.text) or ["none"])[-1]


def answer_from_captions(asked: RuleInput) -> str:
    """The option that is heard last."""
    last = {event: place for place, part in enumerate(captioned(asked.text)) for event in part.events}
    options = [option for option in options_in(asked.text) if option in last]
    return max(options, key=lambda option: last[option]) if options else "unknown"


def guess(asked: RuleInput) -> str:
    """The only option that one may hear at all, if there is no other: as one answers who has not listened."""
    likely = [option for option in options_in(asked.text) if option not in NEVER]
    return likely[0] if len(likely) == 1 else "unknown"


def captioned(text: str) -> list[CaptionedPart]:
    """The lines of captions, in order."""
    return [
        CaptionedPart(one.start, one.end, events) for one in moments_in(text) if (events := tuple(_events(one.text)))
    ]


def _events(text: str) -> list[str]:
    return list(dict.fromkeys(event.lower() for event in _EVENT.findall(text)))


RULES: dict[str, Rule] = {
    "think": think,
    "step_heard": step_heard,
    "step_rewrite": step_rewrite,
    "answer_from_chain": answer_from_chain,
    "answer_from_captions": answer_from_captions,
}
