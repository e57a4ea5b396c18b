"""MMAU-Pro's rule: three ways of scoring by category (sonalkum/MMAUPro@960e93a evaluate_mmau_pro_comprehensive.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from afn_model.eval.items import AnsweredItem
from afn_model.eval.rules.extract import chosen, same
from afn_model.eval.rules.instructions import CHECKS, follows
from afn_model.eval.rules.labels import nearest
from afn_model.eval.score import AnswerGrader, Mark, RuleError, Score, Tools, by_item

OPEN, INSTRUCTIONS = "open", "instruction following"
CRITERIA = ("correctness", "relevance", "completeness", "clarity")
NEUTRAL = 3.0
JUDGING = {"temperature": 0.1, "max_tokens": 512}
SYSTEM = "You are a helpful and objective evaluator."
PROMPT = """A model has answered an open question about a recording. Compare its answer with the reference.

Question: {question}

Reference answer: {answer}

Model's answer: {said}

Give each of these criteria a whole number from 1 (worst) to 5 (best), with a sentence of justification: correctness \
(does it agree with the reference), relevance (does it answer this question), completeness (does it have all that \
matters in the reference), clarity (is it easy to follow). Reply in exactly this form:

CORRECTNESS: 1-5 - why
RELEVANCE: 1-5 - why
COMPLETENESS: 1-5 - why
CLARITY: 1-5 - why
OVERALL: mean of the four - why"""


def overall(reply: str) -> float:
    """The judge's overall grade, 1 to 5.

    Quirks: a criterion that is not found is 3.0, and so is a reply in which none is, as where the judge writes the
    names in bold or the grades in brackets; an overall grade of 3.0, found or not, becomes the mean of the criteria;
    grades outside of 1 to 5 stay as they are.
    """
    grades = [_grade(name, reply, r"\d+") for name in CRITERIA]
    found = _grade("overall", reply, r"\d+(?:\.\d+)?")
    return sum(grades) / len(grades) if found == NEUTRAL else found


def graded(reply: str) -> float | None:
    """Ours: as ``overall``, but None where the reply has neither an overall grade nor all of the criteria, or one
    outside of 1 to 5."""
    found = re.search(r"OVERALL\W*(\d+(?:\.\d+)?)", reply, re.IGNORECASE)
    every = [re.search(rf"{name}\W*(\d+)", reply, re.IGNORECASE) for name in CRITERIA]
    if found:
        grade = float(found[1])
    elif all(every):
        grade = sum(float(one[1]) for one in every if one) / len(every)
    else:
        return None
    return grade if 1 <= grade <= 5 else None


def mmau_pro(answered: Sequence[AnsweredItem], tools: Tools, *, closed: str = "embed") -> Score:
    """Percent over all items, so that each category counts by its items: open questions have the judge's grade ÷ 5,
    instructions are followed or not, and of the others the choice nearest to the output by embedding is the answer or
    not.

    Without a judge the open questions are left out of the denominator, and notes and signature say so. Questions with
    fewer than two choices are left out by the official rule.

    Quirks: 1 of 5 is 20 %, so that the worst open answers score; the nearest choice exists for every output, also for a
    refusal; the authors' embedder gives one for an empty output too, here an empty output is wrong; their judge is
    Qwen2.5-7B-Instruct, sampled once at 0.1; the prompt here is ours, with their criteria and form. See ``overall`` and
    ``instructions.follows``.

    Args:
        closed: "embed" for the official rule; "read" for ours, which reads choices by named rules, leaves out a judge's
            reply without a grade, and gives nothing for an open question without an output.

    Raises:
        RuleError: no embedder, where the official rule is to score questions with choices, or nothing to score without
            a judge.
    """
    kinds: dict[str, list[int]] = {OPEN: [], INSTRUCTIONS: [], "choices": [], "few": []}
    for place, one in enumerate(answered):
        category = str(one.item.groups.get("category", ""))
        if category == INSTRUCTIONS or one.item.answer is not None:
            kind = category if category in kinds else "choices" if len(one.item.choices) > 1 else "few"
            kinds[kind].append(place)
    opened, few = kinds[OPEN], len(kinds["few"])
    if tools.judge is None and not (kinds[INSTRUCTIONS] or kinds["choices"]):
        raise RuleError(f"MMAU-Pro: {len(opened)} open questions need a judge: --judge-url URL names one")

    found = {place: _followed(answered[place]) for place in kinds[INSTRUCTIONS]}
    found |= _chosen(answered, kinds["choices"], tools, closed)
    if tools.judge is not None:
        found |= _judged(answered, opened, tools.judge, ours=closed == "read")
    lost = sum(place in found and found[place][0] is None for place in opened)
    told = {
        "sentences are split by our own rule, not by nltk's punkt": kinds[INSTRUCTIONS],
        f"{few} questions with fewer than two choices are left out, as the official rule does": few,
        f"{len(opened)} open questions are left out: they need a judge, --judge-url": opened and tools.judge is None,
        f"{lost} open questions are left out: the judge gave no grade": lost,
    }
    marks = iter([found.get(place, (None, "not scored")) for place in range(len(answered))])
    score = by_item(answered, lambda one: next(marks), notes=[note for note, holds in told.items() if holds])
    score.ungraded, score.floor = lost, 1 / 5 if lost else 0.0
    closed_by = tools.embed_name if closed == "embed" else "named extraction rules"
    score.signature = f"closed by {closed_by}, open {f'by {tools.judge.name}' if tools.judge else 'not scored'}"
    return score


def _judged(
    answered: Sequence[AnsweredItem], places: Sequence[int], judge: AnswerGrader, *, ours: bool
) -> dict[int, Mark]:
    asked = [place for place in places if not ours or answered[place].text is not None]
    prompts = [
        PROMPT.format(question=one.item.question, answer=one.item.answer, said=one.text or "")
        for one in (answered[place] for place in asked)
    ]
    found: dict[int, Mark] = {place: (0.0, "no output") for place in places}
    grades = judge.grade(prompts, graded if ours else overall, system=SYSTEM, **JUDGING) if prompts else []
    for place, (grade, *_) in zip(asked, grades, strict=True):
        found[place] = (None, "no grade") if grade is None else (grade / 5, f"judge: {grade:g}")
    return found


def _followed(one: AnsweredItem) -> Mark:
    identifier, given = str(one.item.extra.get("task_identifier", "")), one.item.extra.get("kwargs") or {}
    done = one.text is not None and follows(one.text, identifier, given, one.item.question)
    told = "followed" if done else "not followed" if identifier in CHECKS else "unknown instruction"
    return done, f"{identifier}: {told}"


def _chosen(answered: Sequence[AnsweredItem], places: Sequence[int], tools: Tools, closed: str) -> dict[int, Mark]:
    some = [answered[place] for place in places]
    if closed == "read":
        said = [chosen(one.text or "", one.item.choices).choice for one in some]
    else:
        said = nearest(tools, [one.text or "" for one in some], [one.item.choices for one in some])
    found: dict[int, Mark] = {}
    for place, one, choice in zip(places, some, said, strict=True):
        right = choice is not None and choice == same(one.item.answer or "", one.item.choices)
        found[place] = right, "none" if choice is None else one.item.choices[choice]
    return found


def _grade(name: str, reply: str, number: str) -> float:
    found = re.search(rf"{name}:\s*({number})", reply, re.IGNORECASE)
    return float(found[1]) if found else NEUTRAL
