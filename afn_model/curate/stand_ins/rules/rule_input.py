"""What rules that stand in for annotators get."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.curate.timeline import Moment

_LINE = re.compile(r"^(?:clip (\d+), )?([\d.]+) to ([\d.]+) s: (.+)$", re.M)
_OPTION = re.compile(r"^\([A-Z]\) (.+)$", re.M)
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


def moments_in(text: str) -> list[Moment]:
    """The captions that a request holds, as ``Timeline.said`` writes them."""
    return [Moment(float(start), float(end), said, int(clip or 1)) for clip, start, end, said in _LINE.findall(text)]


def options_in(text: str) -> list[str]:
    """The options of a question, as ``prompt.questions.options`` writes them."""
    return _OPTION.findall(text)
