"""How much better one model answers the same records than another, with the standard error of paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Scores = Mapping[str, Sequence[float]]  # of each record, by axis


@dataclass(frozen=True)
class Gain:
    """A difference of means over the same records, and its standard error."""

    difference: float
    error: float

    @property
    def errors(self) -> float:
        """The difference in standard errors."""
        return self.difference / self.error

    def __str__(self) -> str:
        return f"{round(self.difference, 3) + 0.0:+.3f} ± {self.error:.3f}"  # no −0.000


def gain(before: Scores, after: Scores, blend: Mapping[str, float]) -> Gain:
    """The gain of a mean over weighed axes: Σ w · mean(d) / Σ w, d = after − before of each record.

    The variance of an axis' mean is [(Σ d² + 1) / (n + 2) − (Σ d / (n + 2))²] / (n + 2): that of two records more, of
    which half a one rose from 0 to 1 and half a one fell, so that equal answers have an error too.

    Args:
        before, after: scores of the same records, from 0 to 1.
        blend: axis → weight; axes that it does not name are left out.

    Raises:
        ValueError: not as many records of an axis in both.

    Source: Agresti and Min, 2005, doi:10.1002/sim.1781.
    """
    axes = [axis for axis in after if axis in blend]
    total, difference, variance = sum(blend[axis] for axis in axes), 0.0, 0.0
    for axis in axes:
        found = [b - a for a, b in zip(before[axis], after[axis], strict=True)]
        share, n = blend[axis] / total, len(found)
        difference += share * sum(found) / n
        spread = (sum(d * d for d in found) + 1) / (n + 2) - (sum(found) / (n + 2)) ** 2
        variance += share * share * spread / (n + 2)
    return Gain(difference, math.sqrt(variance))


def mean(scores: Scores, blend: Mapping[str, float]) -> float:
    """Mean over weighed axes."""
    total = sum(blend[axis] * sum(values) / len(values) for axis, values in scores.items())
    return total / sum(blend[axis] for axis in scores)


def over_seeds(before: Scores, afters: Sequence[Scores], blend: Mapping[str, float]) -> Gain:
    """The mean gain of several seeds from one start.

    Its variance is that of the records' mean gains and of the seeds: s² / k over k seeds, which share their records.
    """
    means = {
        axis: [sum(values) / len(afters) for values in zip(*(after[axis] for after in afters), strict=True)]
        for axis in before
    }
    whole = gain(before, means, blend)
    each = [gain(before, after, blend).difference for after in afters]
    seeds = sum((one - whole.difference) ** 2 for one in each) / (len(each) - 1) / len(each)
    return Gain(whole.difference, math.hypot(whole.error, math.sqrt(seeds)))


def scores(text: Mapping[str, str]) -> dict[str, list[float]]:
    """Scores as results.json holds them: "1 0 0.667" of each axis."""
    return {axis: [float(word) for word in words.split()] for axis, words in text.items()}
