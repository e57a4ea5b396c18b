"""Drafts: tokens that an answer is expected to go on with, from text that exists for the same recording already.

They are verified, not trusted: an answer with drafts is the answer without them, in fewer forward passes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

MOST = 7  # tokens of a draft: with the one before them, as many as ``ak.decode_attention`` takes together
SUFFIX = 8  # tokens that a place in the text is looked for by, at most


class AnswerDraft:
    """An earlier or cheaper text of the same recording, such as the transcript of a shorter part of it.

    Args:
        ids: its tokens.
        most: tokens proposed at a time, at most.

    Attributes:
        proposed, accepted: tokens, so far.

    Source: prompt lookup as in Saxena, 2023; that audio lets a draft go on after a mismatch, arXiv:2507.18181.
    """

    def __init__(self, ids: Sequence[int], most: int = MOST):
        if not 1 <= most <= MOST:
            raise ValueError(f"a draft proposes 1 to {MOST} tokens at a time, not {most}")
        self.ids, self.most = list(ids), most
        self.places: dict[int, list[int]] = {}  # of each token
        for place, token in enumerate(self.ids):
            self.places.setdefault(token, []).append(place)
        self.at: int | None = 0  # where the answer goes on in the text
        self.proposed = self.accepted = 0

    def grown(self, tokens: Sequence[int]) -> None:
        """The answer has grown by its last token."""
        if self.at is not None and self.at < len(self.ids) and self.ids[self.at] == tokens[-1]:
            self.at += 1
        else:
            self.at = self.place(tokens)

    def propose(self) -> list[int]:
        """The tokens that are expected next; none where the answer is somewhere else."""
        return [] if self.at is None else self.ids[self.at : self.at + self.most]

    def place(self, tokens: Sequence[int]) -> int | None:
        """Behind the longest run of the text that the answer ends with; of equally long ones the first one behind where
        the answer was."""
        best, longest, ends = None, 0, self.places.get(tokens[-1], [])
        after = bisect_left(ends, self.at or 0)
        for end in (*ends[after:], *ends[:after]):
            run = 1
            while run < min(SUFFIX, len(tokens), end + 1) and self.ids[end - run] == tokens[-1 - run]:
                run += 1
            if run > longest:
                best, longest = end + 1, run
        return best
