"""Reads which option an answer chooses, by named rules in order: the first that fires decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afn_model.eval.loaders.files import LETTERS
from afn_model.scoring.text import answer_in, normalise


@dataclass(frozen=True)
class Extracted:
    """The place of a choice, None where no rule fired, and the rule's name."""

    choice: int | None
    rule: str


def chosen(text: str, choices: Sequence[str]) -> Extracted:
    """The choice that an answer names.

    Args:
        text: the whole output.
        choices: of the item, without letters.
    """
    said = normalise(answer_in(text))
    for place, choice in enumerate(choices):
        if said in (normalise(choice), LETTERS[place].lower()):
            return Extracted(place, "exact")
    return Extracted(None, "none")
