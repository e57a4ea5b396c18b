"""Our rule for options: a choice is read by named rules, the first that fires; what none reads is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from afn_model.eval.extract import chosen
from afn_model.eval.items import Answered
from afn_model.eval.score import Part, Score, Tools, ratio


def choices(answered: Sequence[Answered], tools: Tools) -> Score:
    """Percent of all items with an answer, those without an output included."""
    parts: list[Part | None] = []
    read, unparsed = [], 0
    for one in answered:
        found = chosen(one.text or "", one.item.choices)
        read.append(found.rule if found.choice is None else f"{found.rule}: {one.item.choices[found.choice]}")
        unparsed += found.choice is None
        if one.item.answer is None:
            parts.append(None)
            continue
        right = found.choice is not None and one.item.choices[found.choice] == one.item.answer
        parts.append((float(right), 1.0))
    return ratio(answered, parts, scale=100, unparsed=unparsed, extracted=read, signature="named extraction rules")
