"""MMSU's rule: a letter at one of two places of the output (dingdongwang/MMSU_Bench@f0ef334 mmsu_evaluation.py)."""

from __future__ import annotations

from collections.abc import Sequence

from afn_model.eval.items import AnsweredItem
from afn_model.eval.score import Part, Score, Tools, ratio

LETTERS = "ABCD"


def letter_at(said: str) -> str:
    """The first character of an output without line breaks where it is A, B, C or D, else the last but one; "" else."""
    if said[0] in LETTERS:
        return said[0]
    return said[-2] if len(said) > 1 and said[-2] in LETTERS else ""


def letter(answered: Sequence[AnsweredItem], tools: Tools, *, every: bool = False) -> Score:
    """Percent of items whose letter is the answer's.

    Quirks: an output in another format is left out of the denominator; an empty one, and the word "None", has the
    letter of the item before it that had one; a first word such as "Actually" is an A. The official script
    stops with an error where the first output is empty; here it is wrong.

    Args:
        every: the same letters over all items: what has none is wrong, and nothing has that of another.
    """
    parts: list[Part | None] = []
    read, wrong_format, reused, before = [], 0, 0, ""
    for one in answered:
        said = (one.text or "").replace("\n", "")
        found = ""
        if said and said != "None":
            found = letter_at(said)
            wrong_format += not found
            before = found or before
            skipped = not found
        else:
            found, skipped = "" if every else before, False
            reused += bool(found)
        read.append(found or ("wrong format" if skipped else "empty"))
        if one.item.answer is None or (skipped and not every):
            parts.append(None)
            continue
        place = LETTERS.find(found) if found else -1
        right = 0 <= place < len(one.item.choices) and one.item.choices[place] == one.item.answer
        parts.append((float(right), 1.0))
    counted = "are wrong" if every else "are left out, as the official rule does"
    notes = [f"{wrong_format} outputs in another format {counted}"] if wrong_format else []
    if reused:
        notes.append(f"{reused} empty outputs have the letter of the item before them, as the official rule does")
    signature = "MMSU letter" + (", all items" if every else "")
    none = sum(len(found) > 1 and one.text is not None for found, one in zip(read, answered, strict=True))
    return ratio(answered, parts, scale=100, unparsed=none, extracted=read, signature=signature, notes=notes)
