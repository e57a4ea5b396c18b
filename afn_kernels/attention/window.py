"""Which keys a query may see: everything, those up to it, or those within a window around it."""

from __future__ import annotations

import math
import numbers

import torch

UNLIMITED = 2**30  # beyond any length, and a sum of it with lengths still fits 32 bits

Window = tuple[int, int]


def canonical(causal: bool, window: Window | None, op: str = "attention") -> tuple[bool, Window | None]:
    """``causal`` and ``window`` as implementations take them.

    A window has two limits, ``UNLIMITED`` for none, and the right one is 0 where the call is causal. One that hides no
    key, or only those that come after the query, is None, with ``causal`` for the latter.
    """
    if window is None:
        return causal, None
    if not isinstance(window, (tuple, list)) or len(window) != 2 or not all(_whole(n) and n >= -1 for n in window):
        expected = "(left, right), numbers of keys before and after the query's own, -1 for no limit"
        raise ValueError(f"{op}: window={window!r}, expected {expected}")
    left, right = (UNLIMITED if n < 0 else min(n if isinstance(n, torch.SymInt) else int(n), UNLIMITED) for n in window)
    if causal:
        right = 0
    if left == UNLIMITED and right in (0, UNLIMITED):
        return right == 0, None
    return causal, (left, right)


def capping(op: str, softcap: float | None) -> float:
    """``softcap`` as implementations take it: 0 caps nothing."""
    softcap = softcap or 0.0
    if not 0 <= softcap < math.inf:
        raise ValueError(f"{op}: softcap={softcap}, expected a finite number above zero, or 0 for none")
    return softcap


def _whole(n) -> bool:
    return isinstance(n, (numbers.Integral, torch.SymInt)) and not isinstance(n, bool)


def limits(causal: bool, window: Window | None) -> Window | None:
    """How many keys before and after its own a query sees; None where it sees all."""
    return (UNLIMITED, 0) if window is None and causal else window


def flat(window: Window | None) -> Window:
    """A window as an op's schema has it."""
    return (-1, -1) if window is None else window


def given(left: int, right: int) -> Window | None:
    """What ``flat`` was given."""
    return None if left < 0 else (left, right)


def visible(queries: int, keys: int, causal: bool, window: Window | None, device: torch.device) -> torch.Tensor | None:
    """Which query of one sequence may see which key, [queries, keys]; None when all may see all."""
    if (found := limits(causal, window)) is None:
        return None
    left, right = found
    own = torch.arange(queries, device=device)[:, None] + (keys - queries)
    key = torch.arange(keys, device=device)
    return (key >= own - left) & (key <= own + right)
