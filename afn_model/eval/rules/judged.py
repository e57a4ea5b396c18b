"""Grades of a judge: open answers that no rule of words can score."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from afn_model.eval.items import AnsweredItem
from afn_model.eval.rules.judge_prompts import PROMPTS, SYSTEM
from afn_model.eval.score import Part, RuleError, Score, Tools, ratio
from afn_model.scoring.text import final_answer

SETTINGS = {"temperature": 0.0}


def judged(
    answered: Sequence[AnsweredItem],
    tools: Tools,
    *,
    prompt: str,
    scale: str = "",
    repeats: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Score:
    """Mean grade of all items by a judge, on its scale. An item without an output has the lowest grade, and nobody is
    asked about it. One that the judge did not grade is left out and counted in ``ungraded``. One that lacks what the
    judge has to see, such as a hidden reference, is left out.

    A grade is the mean of its repeats and, where a prompt has several aspects, of these; each aspect has a sub-score
    "aspect: NAME".

    Args:
        answered: items with their answers.
        tools: with a judge.
        prompt: a key of ``judge_prompts.PROMPTS``. All are worded by us: their numbers are no reproduction.
        scale: "1-10", "0-100" or "1-5"; that of the prompt if "".
        repeats: grades of each answer.
        settings: fields of the request; temperature 0 if None, and {} for models that take none.

    Raises:
        RuleError: no judge, or no such prompt or scale.
    """
    if tools.judge is None:
        raise RuleError("a judge is needed: --judge-url URL names an OpenAI-compatible API, --judge-model its model")
    if prompt not in PROMPTS:
        raise RuleError(f"{prompt}: no such prompt of a judge; there are {', '.join(PROMPTS)}")
    asked, (low, high) = PROMPTS[prompt], _scale(scale) or PROMPTS[prompt].scale
    settings = SETTINGS if settings is None else dict(settings)
    shown = [place for place, one in enumerate(answered) if not asked.lacks(one.item)]
    said = [place for place in shown if (answered[place].text or "").strip()]
    aspects: dict[str, dict[int, list[float]]] = {}
    missing, names = 0, set[str]()
    for aspect in asked.rubrics:
        texts = [asked.text(aspect, answered[n].item, answered[n].text or "", (low, high)) for n in said]
        grades = tools.judge.grade(texts, grade_in(low, high), system=SYSTEM, repeats=repeats, **settings)
        found = {n: [grade for grade in some if grade is not None] for n, some in zip(said, grades, strict=True)}
        aspects[aspect] = {n: found.get(n, [float(low)]) for n in shown}
        missing += len(said) * repeats - sum(map(len, found.values()))
        names.add(tools.judge.name)
    parts: list[Part | None] = [None] * len(answered)
    read = ["left out"] * len(answered)
    for n in shown:
        means = {aspect: fmean(of[n]) for aspect, of in aspects.items() if of[n]}
        if len(means) == len(aspects):
            parts[n] = (fmean(means.values()), 1.0)
        told = ", ".join(f"{aspect} {mean:g}".strip() for aspect, mean in means.items()) or "no grade"
        read[n] = told if n in said else f"{told}: no output"
    given = [f"{name}:{value}" for name, value in sorted(settings.items())]
    of = f"prompt {prompt} v{asked.version} {asked.digest}, own wording"
    score = ratio(
        answered,
        parts,
        ungraded=sum(parts[n] is None for n in said),
        floor=float(low),
        extracted=read,
        signature="|".join([f"judge {' + '.join(sorted(names))}", of, f"{low}-{high}", f"n:{repeats}", *given]),
        notes=[f"graded by a prompt of our own wording in the place of {asked.after}"],
    )
    for aspect, of in aspects.items():
        graded = [fmean(of[n]) for n in shown if of[n]]
        if aspect and graded:
            score.groups[f"aspect: {aspect}"] = (fmean(graded), len(graded))
    score.notes += _spread(aspects, repeats)
    if missing:
        score.notes.append(f"{missing} of {len(said) * repeats * len(aspects)} grades are missing or unreadable")
    return score


def grade_in(low: int, high: int) -> Callable[[str], float | None]:
    """Reads a grade in a reply: exactly one number, from ``low`` to ``high``, "/ high" and "out of high" aside."""
    form = re.compile(rf"\D*?(?<![-−.])(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*{high})?\D*", re.DOTALL | re.ASCII)

    def read(text: str) -> float | None:
        found = form.fullmatch(final_answer(text))
        return float(found[1]) if found and low <= float(found[1]) <= high else None

    return read


def _scale(given: str) -> tuple[int, int] | None:
    if not given:
        return None
    ends = re.fullmatch(r"(\d+)-(\d+)", given)
    if ends is None or int(ends[1]) >= int(ends[2]):
        raise RuleError(f"scale {given}: such as 1-10 is expected")
    return int(ends[1]), int(ends[2])


def _spread(aspects: Mapping[str, Mapping[int, list[float]]], repeats: int) -> list[str]:
    spreads = [pstdev(some) for of in aspects.values() for some in of.values() if len(some) > 1]
    if repeats < 2 or not spreads:
        return []
    return [f"the grades of one answer differ by {fmean(spreads):.2f} on average (standard deviation)"]
