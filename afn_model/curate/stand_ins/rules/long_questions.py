"""Questions about a whole recording from the lines of its captions, and answers without hearing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from afn_model.curate import identity
from afn_model.curate.stand_ins.rules.rule_input import Rule, RuleInput, moments_in, options_in
from afn_model.curate.stand_ins.rules.think import guess

FLAWED = 5  # one question of so many is not as it should be
_ASKED = re.compile(r"lasts ([\d.]+) seconds\. Write (\d+) questions with (\d+|no) wrong")
_HEARD = re.compile(r"\ban? ([a-z]+) is heard", re.I)
_ABSENT = (
    *("horn", "drum", "whistle", "piano", "trumpet", "violin", "cat", "cow", "goat", "helicopter", "train", "plane"),
    *("hammer", "saw", "bee", "duck", "frog", "owl", "gong", "harp", "kettle", "printer", "zipper", "broom"),
)


@dataclass(frozen=True)
class AskedOf:
    """What a request says.

    Args:
        text: of the request.
        seconds: of the recording.
        pairs, wrong: questions that are wanted, and wrong options of each.
        lines: (start, end, sounds) of each caption.
    """

    text: str
    seconds: float
    pairs: int
    wrong: int
    lines: tuple[tuple[float, float, tuple[str, ...]], ...]

    def once(self) -> list[tuple[str, tuple[float, float]]]:
        """A sound of each line that is in no other one, with its place."""
        everywhere = [name for *_, names in self.lines for name in names]
        alone = [(next((n for n in names if everywhere.count(n) == 1), ""), (a, b)) for a, b, names in self.lines]
        return [(name, place) for name, place in alone if name]

    def absent(self, key: str) -> list[str]:
        """Wrong options: sounds that no line has."""
        left, first = [name for name in _ABSENT if name not in self.text.lower()], identity.number(self.text, key)
        return [_a(left[(first + at) % len(left)]) for at in range(min(self.wrong, len(left)))]

    def without(self, name: str) -> tuple[float, float] | None:
        """The place of a line that lacks a sound."""
        return next(((start, end) for start, end, names in self.lines if name not in names), None)


Written = dict[str, Any]


def asked_of(text: str) -> AskedOf:
    seconds, pairs, wrong = _ASKED.findall(text)[0]
    lines = [(one.start, one.end, tuple(map(str.lower, _HEARD.findall(one.text)))) for one in moments_in(text)]
    return AskedOf(text, float(seconds), int(pairs), 0 if wrong == "no" else int(wrong), tuple(lines))


def needles(asked: AskedOf) -> list[Written]:
    return [
        _question(asked, "needle", f"Which sound is heard only once, near {place[0]:.0f} seconds?", name, [place])
        for name, place in asked.once()
        if place[1] - place[0] <= asked.seconds / 2
    ]


def temporals(asked: AskedOf) -> list[Written]:
    """Of two or three sounds that follow one another; each relation in turn."""
    once, found = asked.once(), list[Written]()
    for at, ((one, first), (two, second)) in enumerate(pairwise(once)):
        relation = ("after", "before", "first", "last", "between")[at % 5]
        name, other, places = (
            (one, two, [second, first]) if relation in ("before", "first") else (two, one, [first, second])
        )
        said = f"Which of these sounds comes {relation} the {other}?"
        if relation in ("first", "last"):
            said = f"What is heard {relation}, the {one} or the {two}?"
        if relation == "between":
            if at + 2 == len(once):
                break
            said, places = (
                f"What is heard between the {one} and the {once[at + 2][0]}?",
                [first, once[at + 2][1], second],
            )
        made = _question(asked, "temporal", said, name, places) | {"relation": relation}
        if relation in ("first", "last"):
            made["wrong"] = [_a(other), *made["wrong"]][: asked.wrong]
        found.append(made)
    return found


def subscenes(asked: AskedOf) -> list[Written]:
    """Of two lines that follow one another."""
    found = []
    for (start, _, names), (_, end, more) in pairwise(asked.lines):
        if (names or more) and end - start <= 0.9 * asked.seconds:
            said = f"Which sound is heard from {start:.0f} to {end:.0f} seconds?"
            found.append(_question(asked, "subscene", said, (*names, *more)[0], [(start, end)]))
    return found


def _question(asked: AskedOf, kind: str, said: str, name: str, places: Sequence[tuple[float, float]]) -> Written:
    evidence = [{"start": start, "end": end} for start, end in places]
    return {"kind": kind, "question": said, "answer": _a(name), "wrong": asked.absent(said), "evidence": evidence}


def _a(name: str) -> str:
    return f"{'An' if name[:1] in 'aeiou' else 'A'} {name}"


# What real writers get wrong: a function of the question and what was asked for, None where it does not apply.
Flaw = Callable[[Written, AskedOf], Written | None]


def _moved(one: Written, asked: AskedOf) -> Written | None:
    place = asked.without(one["answer"].split()[-1])
    return {**one, "evidence": _spans(*[place] * len(one["evidence"]))} if place else None


def _told(one: Written, _: AskedOf) -> Written | None:
    lone = one.get("relation") not in ("first", "last")
    return {**one, "question": f"{one['question'][:-1]}, {one['answer']}?"} if lone else None


def _option(one: Written, asked: AskedOf, *, text: str) -> Written | None:
    option = text or one["answer"].upper()
    return {**one, "wrong": [option, *one["wrong"][1:]]} if asked.wrong else None


def _right_too(one: Written, asked: AskedOf) -> Written | None:
    """Another sound of the evidence becomes a wrong option."""
    start, end = one["evidence"][0]["start"], one["evidence"][0]["end"]
    there = [_a(name) for first, last, names in asked.lines if first >= start and last <= end for name in names]
    other = next((name for name in there if name != one["answer"]), "")
    return _option(one, asked, text=other) if other else None


def _repeated(one: Written, asked: AskedOf) -> Written | None:
    """A needle that several lines have."""
    everywhere = [name for *_, names in asked.lines for name in dict.fromkeys(names)]
    for start, end, names in asked.lines:
        if (name := next((n for n in names if everywhere.count(n) > 1), "")) and end - start <= asked.seconds / 2:
            return {**one, "answer": _a(name), "evidence": _spans((start, end))}
    return None


def _one_more(one: Written, asked: AskedOf) -> Written | None:
    place = asked.without(one["answer"].split()[-1])
    return {**one, "evidence": [*one["evidence"], *_spans(place)]} if place else None


def _opposite(one: Written, _: AskedOf) -> Written | None:
    turned = {"after": "before", "before": "after", "first": "last", "last": "first"}.get(one["relation"])
    return {**one, "relation": turned} if turned else None


def _nameless(one: Written, _: AskedOf) -> Written | None:
    order = one["relation"] in ("after", "before", "between")
    return {**one, "question": f"Which of these sounds comes {one['relation']} that?"} if order else None


def _elsewhen(one: Written, _: AskedOf) -> Written:
    return {**one, "question": re.sub(r"\d+", lambda found: str(int(found[0]) + 7), one["question"])}


def _spans(*places: tuple[float, float]) -> list[dict[str, float]]:
    return [{"start": start, "end": end} for start, end in places]


GENERAL: Mapping[str, Flaw] = {
    "past the end": lambda one, asked: {
        **one, "evidence": _spans((one["evidence"][0]["start"], asked.seconds + 5)) + one["evidence"][1:]
    },
    "backwards": lambda one, _: {**one, "evidence": _spans(*[(p["end"], p["start"]) for p in one["evidence"]])},
    "an option twice": partial(_option, text=""),
    "a number": partial(_option, text="12"),
    "a long option": partial(_option, text="A sound that nobody in the whole wide world has ever heard"),
    "tells the answer": _told,
    "evidence elsewhere": _moved,
    "tells of captions": lambda one, _: {**one, "question": f"By the captions: {one['question']}"},
}  # fmt: skip
FLAWS: Mapping[str, Mapping[str, Flaw]] = {
    "needle": {"heard again": _repeated, "two places": _one_more, "right too": _right_too},
    "temporal": {
        "turned round": lambda one, _: {**one, "evidence": one["evidence"][::-1]},
        "opposite": _opposite,
        "one thing": lambda one, _: {**one, "evidence": one["evidence"][-1:]},
        "nameless": _nameless,
    },
    "subscene": {
        "the whole": lambda one, asked: {**one, "evidence": _spans((0.0, asked.seconds))},
        "two spans": _one_more,
        "other times": _elsewhen,
        "no times": lambda one, _: {**one, "question": "Which sound is heard in this scene?"},
        "right too": _right_too,
    },
}
GOOD: Mapping[str, Callable[[AskedOf], list[Written]]] = {
    "needle": needles,
    "temporal": temporals,
    "subscene": subscenes,
}


def written(text: str, kind: str) -> list[tuple[Written, str]]:
    """Questions, and the flaw of each, "" of those without."""
    asked, found = asked_of(text), list[tuple[Written, str]]()
    flaws = {**FLAWS[kind], **GENERAL}
    for at, one in enumerate(GOOD[kind](asked)[: asked.pairs]):
        number = identity.number(text, kind, at)
        names = list(flaws) if number % FLAWED == 0 else []
        first = number // FLAWED
        turns = (names[(first + step) % len(names)] for step in range(len(names)))
        spoilt = next(((made, name) for name in turns if (made := flaws[name](one, asked))), None)
        found.append(spoilt or (one, ""))
    return found


def _reply(asked: RuleInput, *, kind: str) -> dict[str, Any]:
    """Questions from the lines; by a hash of the request one of five has a flaw of those that the checks know."""
    return {"questions": [one for one, _ in written(asked.text, kind)]}


def blind(asked: RuleInput) -> str:
    """The only option that one may hear at all; else one by a hash of the request, right as often as chance is."""
    if (likely := guess(asked)) != "unknown":
        return likely
    options = options_in(asked.text)
    return identity.pick(options, asked.text) if options else "Nobody can tell without hearing it."


RULES: dict[str, Rule] = {**{kind: partial(_reply, kind=kind) for kind in GOOD}, "blind": blind}
