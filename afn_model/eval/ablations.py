"""Items changed on purpose: without their recordings, with noise in their place, with their options in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from afn_model.eval.items import Item


def no_audio(items: Sequence[Item], out: Path, seed: int) -> list[Item]:
    """What the text alone tells."""
    return [replace(item, clips=()) for item in items]


ABLATIONS: dict[str, Callable[[Sequence[Item], Path, int], list[Item]]] = {
    "no-audio": no_audio,
}


def ablate(name: str, items: Sequence[Item], out: Path, *, seed: int = 0) -> list[Item]:
    """The items of an ablation; the items themselves for "".

    Args:
        name: a key of ``ABLATIONS``.
        items: of a benchmark.
        out: the run's folder, for recordings that are made.
        seed: of what is random.
    """
    return ABLATIONS[name](items, out, seed) if name else list(items)
