"""Yes or no: CMM's rule (DAMO-NLP-SG/CMM@6a59258 evaluation/calculate_score.py) and a strict one of ours."""

from __future__ import annotations

from collections.abc import Sequence

from afn_model.eval.items import AnsweredItem
from afn_model.eval.rules.choices import by_reading
from afn_model.eval.rules.extract import chosen
from afn_model.eval.score import Mark, Score, Tools, by_item, quotient

ANSWERS = ("yes", "no")
FIRST = 5  # characters


def cmm(answered: Sequence[AnsweredItem], tools: Tools) -> Score:
    """Percent of items whose answer is within the first five characters of the output; "measure: PA" is that of the
    answer yes (perception accuracy), "measure: HR" that of no (hallucination resistance).

    Quirks: "not sure", "none" and "I know" are a no; "Well, yes" is nothing.
    """

    def mark(one: AnsweredItem) -> Mark:
        answer = (one.item.answer or "").strip().lower()
        return answer in (one.text or "").lower()[:FIRST] if answer else None, ""

    return _measured(answered, by_item(answered, mark, extracted=[], signature="CMM, first five characters"))


def strict(answered: Sequence[AnsweredItem], tools: Tools) -> Score:
    """Percent of all items whose output says yes or no, as our rules of extraction read it, and is right."""
    read = by_reading(answered, lambda one: chosen(one.text or "", ANSWERS, lettered=False), lambda one: ANSWERS)
    return _measured(answered, read)


def _measured(answered: Sequence[AnsweredItem], score: Score) -> Score:
    for name, answer in (("measure: PA", "yes"), ("measure: HR", "no")):
        some = [
            part
            for one, part in zip(answered, score.parts, strict=True)
            if part is not None and (one.item.answer or "").strip().lower() == answer
        ]
        if some:
            score.groups[name] = (quotient(some, 100), len(some))
    return score
