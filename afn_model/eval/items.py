"""Items of a benchmark and the answers to them: what loaders give, and what rules score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class ItemClip:
    """A recording of an item, or a part of it.

    Args:
        path: of a file, or a cell of a table or a member of a tar file as ``afn_model.audio`` names them; it need not
            be there.
        start, end: seconds; None for the beginning and the end of the recording.
    """

    path: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Args:
        id: unlike that of all others of the benchmark; ``distinct`` makes it so.
        question: as the benchmark's file has it; "" where the task is the same for all items.
        clips: what the question is about, in order.
        choices: texts of the options without their letters, in order; () where there are none.
        answer: the right one: a choice's text, a label, an open answer; None where it is hidden or there is none.
        references: captions, transcripts or translations that an answer is compared with.
        groups: names of sub-scores, such as {"task": "sound"}.
        extra: what a rule or a prompt needs beside these.
    """

    id: str
    question: str = ""
    clips: tuple[ItemClip, ...] = ()
    choices: tuple[str, ...] = ()
    answer: str | None = None
    references: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnsweredItem:
    """An item with what the model said about it.

    Args:
        item: the item.
        text: the whole output, reasoning included; None where there is none.
        error: why there is none; "" where nothing went wrong (an item that nobody asked about yet has neither).
        finish: "stop", "length" or "repetition".
    """

    item: Item
    text: str | None
    error: str = ""
    finish: str = ""


def distinct(items: Iterable[Item]) -> list[Item]:
    """Items whose ids differ: the second of an id gets ``#2`` behind it, and so on. Files repeat ids."""
    seen, taken, found = Counter[str](), set[str](), []
    for item in items:
        name = item.id
        while name in taken:
            seen[item.id] += 1
            name = f"{item.id}#{seen[item.id] + 1}"
        taken.add(name)
        found.append(item if name == item.id else replace(item, id=name))
    return found
