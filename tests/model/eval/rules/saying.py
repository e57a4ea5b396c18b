"""Items with outputs, for tests of rules."""

from afn_model.eval.items import AnsweredItem, Item, ItemClip

TEXTS = ("Dog", "Cat", "Bird", "Rain")


def said(output, answer, choices=TEXTS, *, id="", **rest):
    """An item with an answer and choices, and an output to it."""
    return AnsweredItem(Item(id, "Which?", (ItemClip(f"{id}.wav"),), tuple(choices), answer, **rest), output)


def points(score):
    """Σ above of each item, None for one that is left out."""
    return [None if part is None else part[0] for part in score.parts]
