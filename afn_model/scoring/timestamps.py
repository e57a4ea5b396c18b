"""Times that a text states for events, matched with the events."""

from __future__ import annotations

from collections.abc import Sequence

from afn_model.scoring.text import clauses, normalise, says, times_in

WITHIN = 1.0  # seconds that a stated time may be off, where nothing else is said


def stated_times(text: str) -> list[tuple[str, float]]:
    """Every clause that holds a time, with the first of its times in seconds."""
    return [(clause, times[0]) for clause in clauses(text) if (times := times_in(clause))]


def match_times(text: str, events: Sequence[Sequence], within: float = WITHIN) -> tuple[int, int]:
    """How many events have their time stated, and how many times are stated for labels of events.

    A clause states its time for every label that it holds; each of these statements serves one event.

    Args:
        text: to search.
        events: [label, seconds] each.
        within: seconds that a time may be off.
    Returns:
        (events stated right, statements).
    """
    labels = {normalise(label) for label, _ in events}
    stated = [(label, seconds) for clause, seconds in stated_times(text) for label in labels if says(clause, label)]
    left, right = list(stated), 0
    for label, seconds in sorted(events, key=lambda event: event[1]):
        near = [one for one in left if one[0] == normalise(label) and abs(one[1] - seconds) <= within]
        if near:
            left.remove(min(near, key=lambda one: abs(one[1] - seconds)))
            right += 1
    return right, len(stated)
