"""How far from float64 a result may be: twice what plain PyTorch loses in the same precision, and one rounding.

A budget comes from a distribution (several orders of summation, several draws of the inputs) or from a bound, never
from one evaluation: one order of summation is one throw of dice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK = 2**24  # elements that are compared at a time: 400 MB of float64 where two of 4 GB would not fit


def lost(same_precision: Sequence[Tensor], oracle: Tensor) -> list[float]:
    """What PyTorch loses in each of its orders of summation, max|same_precision − oracle| / max|oracle|."""
    if not oracle.numel():
        return [0.0] * len(same_precision)
    size = max(largest_magnitude(oracle), torch.finfo(torch.float64).tiny)
    return [furthest(other, oracle) / size for other in same_precision]


def largest(losses: Sequence[float]) -> float:
    """The largest, or three standard deviations above the mean.

    Of many independent errors the largest is nearly the same in every order, and both are. Where one rounding decides
    (a loss, a norm's reciprocal that a whole gradient shares), ten throws seldom show how far it can go.
    """
    spread = 3 * statistics.stdev(losses) if len(losses) > 1 else 0.0
    return max(max(losses), statistics.fmean(losses) + spread)


def allowance(
    losses: Sequence[float], dtype: torch.dtype, size: float, *, ulps: float = 1, summed: int = 0, rms: float = 0.0
) -> float:
    """2 · largest(losses) · size + ulps · eps · size + walk: the largest distance from the oracle.

    walk = 0.6 · eps₃₂ · √summed · hypot(√summed · rms, size) is for gradients that add up many rows in float32, one
    after the other. Each addition rounds by up to eps₃₂ / 2 of the partial sum. Partial sums of k independent terms are
    about √k · rms, those that end at a sum S also k / summed · S on the way: standard deviations of
    eps₃₂ · summed · rms / (2 √6) and eps₃₂ · √summed · S / 6, of which three are allowed.

    Args:
        losses: of ``lost``, in all orders and draws.
        dtype: of the result.
        size: max|oracle|.
        ulps: 1; 2 where results are truncated instead of rounded to nearest.
        summed: rows added up in float32.
        rms: root mean square of what is added.
    """
    walk = torch.finfo(torch.float32).eps * 0.6 * summed**0.5 * math.hypot(summed**0.5 * rms, size) if summed else 0.0
    return (2 * largest(losses) + ulps * torch.finfo(dtype).eps) * size + walk


def largest_magnitude(x: Tensor) -> float:
    """max|x|; NaN where there is one."""
    return max_or_nan(part.double().abs().max() for part in x.detach().reshape(-1).split(CHUNK))


def furthest(a: Tensor, b: Tensor) -> float:
    """max|a − b| in float64, a part at a time; NaN where there is one."""
    parts = zip(*(x.detach().reshape(-1).split(CHUNK) for x in (a, b)), strict=True)
    return max_or_nan((x.double() - y.double()).abs().max() for x, y in parts)


def max_or_nan(values: Iterator[Tensor]) -> float:
    found = [float(x) for x in values]
    return math.nan if any(x != x for x in found) else max(found, default=0.0)
