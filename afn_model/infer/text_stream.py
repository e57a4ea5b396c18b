"""Text from tokens, as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TextStream:
    """Writes tokens as text; a character whose bytes are spread over several tokens waits for the last of them."""

    def __init__(self, decode: Callable[[list[int]], str], write: Callable[[str], Any]):
        self.decode, self.write = decode, write
        self.pending: list[int] = []

    def __call__(self, token: int) -> None:
        self.pending.append(token)
        if not self.decode(self.pending).endswith("\N{REPLACEMENT CHARACTER}"):
            self.close()

    def close(self) -> None:
        if text := self.decode(self.pending):
            self.write(text)
        self.pending = []
