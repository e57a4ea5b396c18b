"""Captions of recordings, the ones that were asked for last."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

KEPT = 4096  # captions


@dataclass(frozen=True)
class Caption:
    """What a recording sounds like.

    Args:
        text: without thinking.
        finish: why it ended.
        prompt_tokens, audio_tokens, answer_tokens: that it took.
    """

    text: str
    finish: str
    prompt_tokens: int
    audio_tokens: int
    answer_tokens: int


class CaptionCache:
    """The captions that were asked for last, by (recording, prompt).

    Args:
        capacity: captions.
    """

    def __init__(self, capacity: int = KEPT):
        self.capacity = capacity
        self._kept: OrderedDict[tuple[str, str], Caption] = OrderedDict()

    def get(self, recording: str, prompt: str) -> Caption | None:
        found = self._kept.get((recording, prompt))
        if found is not None:
            self._kept.move_to_end((recording, prompt))
        return found

    def add(self, recording: str, prompt: str, caption: Caption) -> None:
        self._kept[recording, prompt] = caption
        self._kept.move_to_end((recording, prompt))
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
