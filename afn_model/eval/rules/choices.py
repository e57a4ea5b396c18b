"""Our rule for options: a choice is read by named rules, the first that fires; what none reads is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from afn_model.eval.items import AnsweredItem
from afn_model.eval.rules.extract import Extracted, chosen, same
from afn_model.eval.score import Mark, Score, Tools, by_item

NO_OUTPUT = Extracted(None, "no output")


def choices(answered: Sequence[AnsweredItem], tools: Tools) -> Score:
    """Percent of all items with an answer, those without an output included."""
    return by_reading(answered, lambda one: chosen(one.text or "", one.item.choices))


def by_reading(
    answered: Sequence[AnsweredItem],
    read: Callable[[AnsweredItem], Extracted],
    names: Callable[[AnsweredItem], Sequence[str]] = lambda one: one.item.choices,
    **rest: Any,
) -> Score:
    """Percent of items whose answer is the choice that was read.

    Args:
        answered: items with outputs.
        read: which of ``names`` an output says.
        names: the choices of an item.
        rest: other fields of ``Score``.
    """
    strange = unparsed = 0

    def mark(one: AnsweredItem) -> Mark:
        nonlocal strange, unparsed
        among = names(one)
        found = NO_OUTPUT if one.text is None else read(one)
        told = found.rule if found.choice is None else f"{found.rule}: {among[found.choice]}"
        unparsed += found.choice is None and one.text is not None
        if one.item.answer is None:
            return None, told
        right = same(one.item.answer, among)
        strange += right is None
        return found.choice is not None and same(among[found.choice], among) == right, told

    score = by_item(answered, mark, **{"signature": "named extraction rules"} | rest)
    score.unparsed = unparsed
    if strange:
        score.notes = [*score.notes, f"{strange} items whose answer is none of their options count as wrong"]
    return score
