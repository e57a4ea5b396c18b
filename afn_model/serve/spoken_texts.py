"""What was said of late: a client that goes on with a conversation names an answer's sound by its id."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

KEPT_SECONDS, KEPT = 3600, 4096  # how long what was said is known by its id, and of how many answers
CHARACTERS = 1 << 24  # of all of them together


class SpokenTexts:
    """What was said, by client and id. Those kept longest make room for others."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self.clock = clock
        self._characters = 0
        self._known: OrderedDict[tuple[str, str], tuple[str, int]] = OrderedDict()

    def keep(self, owner: str, id: str, text: str) -> int:
        """Until when it is known, in seconds since 1970."""
        until = int(self.clock()) + KEPT_SECONDS
        self._known[owner, id] = text, until
        self._characters += len(text)
        while len(self._known) > KEPT or self._characters > CHARACTERS:
            _, (gone, _) = self._known.popitem(last=False)
            self._characters -= len(gone)
        return until

    def get(self, owner: str, id: str) -> str | None:
        text, until = self._known.get((owner, id), (None, 0))
        return text if until > self.clock() else None
