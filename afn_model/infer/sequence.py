"""An answer in the making, and what a step computes of it. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from afn_model.infer.pages import PAGE, page_key
from afn_model.infer.tokens import PromptTokens


@dataclass(eq=False, slots=True)
class Sequence:
    """One answer in the making.

    Args:
        prompt: what it answers.
        limit: tokens that it may have; it is finished by its owner at the latest then. With none, the full pages of the
            prompt are computed, for others to find.
        priority: a higher one goes first.
        leader: another answer to the same prompt, whose pages it goes on from.
        tokens: drawn so far.
        length: tokens of prompt and answer that are known.
        drawing: tokens drawn, with those that are not known yet.
        computed: tokens whose keys and values are in ``pages``.
        keys, contents: of the full pages, by which they are found again.
        here, reach: of these pages, how many of the first are on the device, and how many there or saved, as far as is
            known while it waits.
        returning: what is still to be copied into the pages behind ``computed``, having been saved.
        slot: its row of the device's state, -1 while it waits.
        draft: tokens that are expected next; what they lead to is computed together with the next token.
        began: when it first got a slot, by the scheduler's clock, as ``arrived``.
    """

    prompt: PromptTokens
    limit: int
    priority: int = 0
    leader: Sequence | None = None
    number: int = 0
    arrived: float = 0.0
    began: float = 0.0
    tokens: list[int] = field(default_factory=list)
    length: int = 0
    drawing: int = 0
    computed: int = 0
    published: int = 0
    reused: int = 0
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    here: int = 0
    reach: int = 0
    returning: list[Any] = field(default_factory=list)
    slot: int = -1
    draft: list[int] = field(default_factory=list)
    preemptions: int = 0

    def __post_init__(self):
        self.length = len(self.prompt.ids) + len(self.tokens)

    def token(self, place: int) -> int:
        """The token at a place, of the draft behind what is known; -1 where it is being drawn."""
        ids = self.prompt.ids
        if place < len(ids):
            return ids[place]
        place -= len(ids)
        if place < len(self.tokens):
            return self.tokens[place]
        place -= len(self.tokens)
        return self.draft[place] if place < len(self.draft) else -1

    def places(self, start: int, stop: int) -> list[int]:
        """Where keys and values of tokens [start, stop) stand, in the pages taken as one run."""
        return [self.pages[at // PAGE] * PAGE + at % PAGE for at in range(start, stop)]

    def known(self, start: int, stop: int) -> list[int]:
        """The tokens at places [start, stop)."""
        if stop <= len(self.prompt.ids):
            return self.prompt.ids[start:stop]
        return [self.token(place) for place in range(start, stop)]

    def name(self, pages: int, canonical: bool) -> None:
        """Content and keys of the first full pages; two with the same content behind the same pages hold the same.

        Args:
            pages: how many, at least.
            canonical: what rows have computed is not taken for what is computed as part of a prompt.
        """
        ids, leader = self.prompt.ids, self.leader
        if not self.contents:
            whole = min(pages, (len(ids) - 1) // PAGE)
            if leader is not None and len(leader.keys) >= whole:
                self.contents, self.keys = leader.contents[:whole], leader.keys[:whole]
            else:
                self.contents = self.prompt.contents(whole, PAGE)
        for page in range(len(self.contents), pages):
            end = (page + 1) * PAGE
            tokens = ids[end - PAGE : end]
            if end > len(ids):
                tokens = tokens + self.tokens[max(0, end - PAGE - len(ids)) : end - len(ids)]
            content = self.prompt.content(page, tokens)
            if canonical and end >= len(ids):
                content += b"rows from" + (len(ids) - 1).to_bytes(8, "little")
            self.contents.append(content)
        for content in self.contents[len(self.keys) :]:
            self.keys.append(page_key(self.keys[-1] if self.keys else b"", content))


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """Tokens [start, stop) of a sequence that a step computes; nothing is drawn after them."""

    sequence: Sequence
    start: int
    stop: int


@dataclass(slots=True)
class EngineStep:
    """What is computed together, in this order.

    Args:
        copies: (from, to) pages.
        restored: (page, what it holds) of pages that had been saved outside of the device.
        windows: digests of audio windows to encode.
        chunks: of prompts.
        verified: the last known token of sequences and their drafts behind it; a token is drawn after each.
        rows: sequences that each compute one token.
        places: of these tokens.
        draws: whether the next token is drawn after each; otherwise it is known.
    """

    copies: list[tuple[int, int]] = field(default_factory=list)
    restored: list[tuple[int, Any]] = field(default_factory=list)
    windows: list[bytes] = field(default_factory=list)
    chunks: list[PromptChunk] = field(default_factory=list)
    verified: list[PromptChunk] = field(default_factory=list)
    rows: list[Sequence] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    draws: list[bool] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.chunks or self.windows or self.verified or self.restored)
