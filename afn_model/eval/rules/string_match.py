"""MMAU's and MMAR's rule: words of the answer and of the other options in the output."""

from __future__ import annotations

import re
from collections.abc import Sequence

from afn_model.eval.items import AnsweredItem
from afn_model.eval.score import Mark, Score, Tools, by_item

_WORD = re.compile(r"\b\w+\b")


def matches(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether all words of the answer are in the prediction, and no word of another choice that is not the answer's.

    Source: Sakshi113/MMAU@110127f and ddlBoJack/MMAR@3bce090, string_match.
    """
    said, right = _words(prediction), _words(answer)
    wrong = set().union(*(_words(choice) - right for choice in choices))
    return bool(said) and right <= said and not said & wrong


def string_match(answered: Sequence[AnsweredItem], tools: Tools) -> Score:
    """Percent of items that ``matches``.

    Quirks: items that have no output are left out of the denominator, an empty output counts as wrong; a letter alone
    is wrong; a right option that is explained by naming another is wrong; words are a set, whatever their order.
    """

    def mark(one: AnsweredItem) -> Mark:
        if one.text is None or one.item.answer is None:
            return None, ""
        return matches(one.text, one.item.answer, one.item.choices), ""

    absent = sum(one.text is None and one.item.answer is not None for one in answered)
    notes = [f"{absent} items without an output are left out, as the official rule does"] if absent else []
    return by_item(answered, mark, extracted=[], signature="MMAU string_match", notes=notes)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
