"""What an answer thinks, apart from what it says, while it comes."""

from __future__ import annotations

from afn_model.infer.finish import END_OF_THINKING, THINK, begun


class Reasoning:
    """Parts a text at ``<think>`` and ``</think>``, which belong to neither side.

    A side is all of its pieces, joined; nothing else of the text is changed. Characters that may begin a tag wait for
    the next ones. As in ``Finish``, ``</think>`` ends thinking alone: outside of it, it is text.

    Args:
        thinking: whether the text begins inside of ``<think>``, as after a prompt that opened it.
        splits: whether there are tags; otherwise all of the text is one side.
    """

    def __init__(self, thinking: bool = False, *, splits: bool = True):
        self.thinking, self.splits = thinking, splits
        self._sides: tuple[list[str], list[str]] = ([], [])  # pieces of what is said, and of what is thought
        self._lengths, self._held, self._at = [0, 0], "", 0
        self._runs: list[tuple[int, int, bool, int]] = []  # start and stop in the text, side, start in the side

    @property
    def said(self) -> str:
        return "".join(self._sides[False])

    @property
    def thought(self) -> str:
        return "".join(self._sides[True])

    def feed(self, text: str) -> tuple[str, str]:
        """Takes more of the text.

        Returns:
            what the thoughts and what the answer grow by.
        """
        held, grown = self._held + text, ["", ""]
        while self.splits and (at := held.find(self._tag)) >= 0:
            grown[self.thinking] += self._take(held[:at])
            held, self._at = held[at + len(self._tag) :], self._at + len(self._tag)
            self.thinking = not self.thinking
        kept = len(held) - (begun(held, self._tag) if self.splits else 0)
        grown[self.thinking] += self._take(held[:kept])
        self._held = held[kept:]
        return grown[True], grown[False]

    def close(self) -> tuple[str, str]:
        """As ``feed``, of what was waiting: nothing more comes."""
        held, self._held = self._held, ""
        self._take(held)
        return (held, "") if self.thinking else ("", held)

    def place(self, start: int, stop: int) -> tuple[bool, int, int]:
        """Where characters [start, stop) of the text are: (whether in the thoughts, start, stop there).

        They are where the first one is; what goes past the end of a piece of that side is left out.
        """
        for first, last, thinking, own in self._runs:
            if start < last:
                begin = max(start, first)
                return thinking, own + begin - first, own + max(begin, min(stop, last)) - first
        length = self._lengths[self.thinking]
        return self.thinking, length, length

    @property
    def _tag(self) -> str:
        return END_OF_THINKING if self.thinking else THINK

    def _take(self, piece: str) -> str:
        """A piece of the side that is on."""
        if piece:
            side, runs = self.thinking, self._runs
            if runs and runs[-1][1] == self._at:
                runs[-1] = (runs[-1][0], self._at + len(piece), side, runs[-1][3])
            else:
                runs.append((self._at, self._at + len(piece), side, self._lengths[side]))
            self._sides[side].append(piece)
            self._lengths[side] += len(piece)
            self._at += len(piece)
        return piece
