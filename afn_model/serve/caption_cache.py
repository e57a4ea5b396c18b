"""Captions of recordings, the ones that were asked for last."""

from __future__ import annotations

import hashlib
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
    """The captions that were asked for last, by (client, recording, prompt): nobody learns what others ask about.

    Args:
        capacity: captions.
    """

    def __init__(self, capacity: int = KEPT):
        self.capacity = capacity
        self._kept: OrderedDict[tuple[str, str, bytes], Caption] = OrderedDict()

    def get(self, owner: str, recording: str, prompt: str) -> Caption | None:
        key = owner, recording, hashlib.sha256(prompt.encode()).digest()
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def add(self, owner: str, recording: str, prompt: str, caption: Caption) -> None:
        key = owner, recording, hashlib.sha256(prompt.encode()).digest()
        self._kept[key] = caption
        self._kept.move_to_end(key)
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
