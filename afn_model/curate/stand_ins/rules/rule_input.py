"""What rules that stand in for annotators get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]


@dataclass(frozen=True)
class RuleInput:
    """What a rule gets.

    Args:
        text: of the request.
        events: that are heard in its recordings, those of each in a list, in seconds from the beginning of what was
            sent.
    """

    text: str
    events: Sequence[Sequence[Event]] = ()

    @property
    def first(self) -> Sequence[Event]:
        return self.events[0] if self.events else ()


Rule = Callable[[RuleInput], str | dict[str, Any]]
