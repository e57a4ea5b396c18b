"""Labels: as text, and by the nearest embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from afn_model.eval.items import AnsweredItem
from afn_model.eval.rules.choices import by_reading
from afn_model.eval.rules.extract import Extracted, chosen
from afn_model.eval.score import RuleError, Score, Tools


def labels(
    answered: Sequence[AnsweredItem], tools: Tools, *, synonyms: Mapping[str, Sequence[str]] | None = None
) -> Score:
    """Percent of all items whose output is their label or names it and no other one, as whole words.

    Args:
        synonyms: label -> other names of it, which count as it.
    """
    known = _labels(answered)
    renamed = _renamer(known, synonyms or {})
    return by_reading(
        answered,
        lambda one: chosen(renamed(one.text or ""), one.item.choices or known, lettered=False),
        lambda one: one.item.choices or known,
        notes=[f"synonyms: {', '.join(synonyms)}"] if synonyms else [],
    )


def retrieval(answered: Sequence[AnsweredItem], tools: Tools) -> Score:
    """Percent of all items whose label is nearest to the output by cosine, as Pengi does with the text tower of CLAP.
    An empty output is wrong.

    Raises:
        RuleError: no embedder.
    """
    known = _labels(answered)
    given = [one for one in answered if one.text is not None]
    among = [one.item.choices or known for one in given]
    said = [one.text or "" for one in given]
    found = iter(nearest(tools, said, among))
    return by_reading(
        answered,
        lambda one: Extracted(next(found), "nearest"),
        lambda one: one.item.choices or known,
        signature=f"nearest label by {tools.embed_name}",
    )


def nearest(tools: Tools, said: Sequence[str], among: Sequence[Sequence[str]]) -> list[int | None]:
    """The place of the text nearest to each output by cosine; of equally near ones the first. None for an output that
    is empty or whose embedding is zero.

    Raises:
        RuleError: no embedder.
    """
    if not said:
        return []
    if tools.embed is None:
        raise RuleError(f"the nearest choice of {len(said)} outputs needs an embedder of texts: give one with --embed")
    texts = list(dict.fromkeys([text for text in said if text.strip()] + [text for some in among for text in some]))
    if not texts:
        return [None] * len(said)
    vectors = np.asarray(tools.embed(texts), np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = dict(zip(texts, np.divide(vectors, lengths, where=lengths > 0, out=np.zeros_like(vectors)), strict=True))
    return [
        int(np.argmax(np.stack([units[other] for other in some]) @ units[text]))
        if text in units and some and units[text].any()
        else None
        for text, some in zip(said, among, strict=True)
    ]


def _labels(answered: Sequence[AnsweredItem]) -> tuple[str, ...]:
    return tuple(sorted({one.item.answer for one in answered if one.item.answer is not None}))


def _renamer(known: Sequence[str], synonyms: Mapping[str, Sequence[str]]):
    """Puts labels in the place of their synonyms; the longest name that stands at a place counts."""
    names = {label.lower(): label for label in [*known, *synonyms]}
    names |= {other.lower(): label for label, some in synonyms.items() for other in some}
    some = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{some or '(?!)'})(?!\w)", re.IGNORECASE)
    return lambda text: pattern.sub(lambda match: names[match[0].lower()], text) if synonyms else text
