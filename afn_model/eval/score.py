"""What a rule finds: a number in the paper's unit, the share of each item in it, and how far it may be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from afn_model.eval.items import AnsweredItem

DRAWS = 1000
Part = tuple[float, float]  # what an item adds above and below the line of a ratio of sums
Mark = tuple[float | None, str]  # what an item has, 0 to 1 or None to leave it out, and what was read in its output


class RuleError(ValueError):
    """A rule that cannot be used here: a library, a judge or an embedder is missing."""


@dataclass
class Score:
    """A benchmark's score by one rule.

    Args:
        value: in the paper's unit: percent, word error rate in percent, BLEU, CIDEr, a judge's scale. NaN where no item
            was scored.
        parts: of each answered item (above, below): value = scale · Σ above ÷ Σ below. None for an item that the rule
            leaves out of its denominator.
        groups: sub-scores by "group: name", such as "task: sound", in the unit of ``value``, and how many items.
        scale: 100 for percent, 1 else.
        unparsed: items whose answer no extraction rule could read. They count as wrong.
        ungraded: items that a judge gave no grade, though they have an output: they are left out, and ``floor`` is what
            each of them has at least.
        extracted: of each item, what was read in its answer and by which rule, for the record.
        signature: what another number must share to be comparable: normaliser, tokeniser, judge, versions.
        notes: sentences for the report.
        interval: of 95 %, by rules whose value is no ratio of sums; ``interval`` gives it.
    """

    value: float
    parts: list[Part | None]
    groups: dict[str, tuple[float, int]] = field(default_factory=dict)
    scale: float = 1.0
    unparsed: int = 0
    ungraded: int = 0
    floor: float = 0.0
    extracted: list[str] = field(default_factory=list)
    signature: str = ""
    notes: list[str] = field(default_factory=list)
    interval: tuple[float, float] | None = None

    @property
    def n(self) -> int:
        """Items in the denominator."""
        return sum(part is not None for part in self.parts)


class AnswerGrader(Protocol):
    """A judge, as rules use it: ``afn_model.eval.rules.judge`` has one behind an endpoint, tests have their own."""

    name: str  # of the model, as the endpoint says it

    def grade(
        self,
        prompts: Sequence[str],
        parse: Callable[[str], float | None],
        *,
        system: str = "",
        repeats: int = 1,
        **settings: Any,
    ) -> list[list[float | None]]:
        """Grades of each prompt, ``repeats`` of them: None where a reply could not be parsed or did not come.
        ``settings`` are fields of the request, such as temperature, top_p and max_tokens."""
        ...


@dataclass
class Tools:
    """What rules may need from outside.

    Args:
        judge: a ``AnswerGrader``, if there is one.
        embed: texts -> vectors [n, d], for rules of retrieval, and the name that reports give it.
    """

    judge: AnswerGrader | None = None
    embed: Callable[[Sequence[str]], np.ndarray] | None = None
    embed_name: str = ""


Rule = Callable[..., Score]  # (answered, tools, **options of the benchmark's table) -> Score


def ratio(
    answered: Sequence[AnsweredItem],
    parts: Sequence[Part | None],
    *,
    scale: float = 1.0,
    groups: Sequence[str] | None = None,
    **rest: Any,
) -> Score:
    """The score of parts: scale · Σ above ÷ Σ below over all items and over those of each group.

    Args:
        answered, parts: item by item.
        scale: of the unit.
        groups: names of groups; all that the items have if None.
        rest: other fields of ``Score``.
    """
    by_group: dict[str, list[Part]] = {}
    for one, part in zip(answered, parts, strict=True):
        for name, value in one.item.groups.items():
            if part is not None and (groups is None or name in groups):
                by_group.setdefault(f"{name}: {value}", []).append(part)
    found = {name: (quotient(some, scale), len(some)) for name, some in sorted(by_group.items())}
    return Score(quotient([part for part in parts if part is not None], scale), list(parts), found, scale, **rest)


def by_item(answered: Sequence[AnsweredItem], mark: Callable[[AnsweredItem], Mark], **rest: Any) -> Score:
    """The mean in percent of what each item has.

    Args:
        answered: items with outputs.
        mark: item -> its mark; "none" where nothing could be read.
        rest: other fields of ``Score``.
    """
    marks = [mark(one) for one in answered]
    unread = sum(read == "none" and one.text is not None for one, (_, read) in zip(answered, marks, strict=True))
    parts = [None if value is None else (float(value), 1.0) for value, _ in marks]
    fixed = {"scale": 100, "unparsed": unread, "extracted": [read for _, read in marks]}
    return ratio(answered, parts, **fixed | rest)


def quotient(parts: Sequence[Part], scale: float = 1.0) -> float:
    below = sum(part[1] for part in parts)
    return scale * sum(part[0] for part in parts) / below if below else float("nan")


def interval(
    answered: Sequence[AnsweredItem], score: Score, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """A 95 % bootstrap interval of the score."""
    if score.interval is not None:
        return score.interval
    if not score.n:
        return float("nan"), float("nan")
    sums = resampled(answered, score.parts, seed=seed, draws=draws)
    values = [score.scale * above / below if below else np.nan for above, below in sums]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def resampled(
    answered: Sequence[AnsweredItem], rows: Sequence[Sequence[float] | None], *, seed: int = 0, draws: int = DRAWS
) -> Iterator[np.ndarray]:
    """Sums of rows over drawn recordings: these are drawn, not items, as questions about one recording share what is
    hard about it.

    Args:
        answered, rows: item by item; None for an item that is left out, of the others at least one.
        seed, draws: of the bootstrap.
    """
    clusters: dict[Any, np.ndarray] = {}
    for one, row in zip(answered, rows, strict=True):
        if row is not None:
            key = tuple(clip.path for clip in one.item.clips) or one.item.id
            clusters[key] = clusters.get(key, 0.0) + np.asarray(row, float)
    table, random = np.array(list(clusters.values())), np.random.default_rng(seed)
    for _ in range(draws):
        yield table[random.integers(0, len(table), len(table))].sum(0)
