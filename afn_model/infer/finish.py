"""When an answer ends, and what of its text may be shown before it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from afn_model.infer.sampling_params import LOOP_REPEATS, SamplingParams
from afn_model.infer.text_stream import TextStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Reason = Literal["stop", "length", "repetition", "error", "abort"]
THINK, END_OF_THINKING = "<think>", "</think>"
LOOKED_AT = 16  # tokens between two looks for a loop


class Finish:
    """One answer, token by token, on the host.

    ``reason`` is None while the answer goes on; then "stop" (a stop token, a stop string or the grammar's end),
    "length" (``room`` is used up), "repetition" (a loop, see ``SamplingParams.loop_tokens``), or what ``end`` was told.

    Text is held back while it may begin a stop string, or a character some of whose bytes are missing. A stop string is
    found wherever tokens part it, of several the one that is complete first; it and what follows are no part of the
    text.

    Args:
        params: ``resolved`` ones, whose stop tokens are not None.
        room: tokens that the answer may have: ``max_new_tokens``, or less where the context ends earlier.
        decode: text of token ids, special tokens left out; None keeps no text, which stop strings and the cap on
            thinking need.
        end_of_thinking: the ids of ``</think>``, which are put where thinking reaches its cap.
        thinking: whether the prompt ends inside of ``<think>``.
    """

    def __init__(
        self,
        params: SamplingParams,
        room: int,
        *,
        decode: Callable[[list[int]], str] | None = None,
        end_of_thinking: Sequence[int] = (),
        thinking: bool = False,
    ):
        assert params.stop_token_ids is not None, "the parameters must be resolved"
        capped = params.max_thinking_tokens is not None
        assert decode is not None or not (params.stop_strings or capped), "these need text"
        assert end_of_thinking or not capped, "a cap on thinking needs the ids of its end"
        self.params, self.stop_ids, self.room = params, frozenset(params.stop_token_ids), room
        self.stream = None if decode is None else TextStream(decode, self._take)
        self.tokens: list[int] = []
        self.reason: Reason | None = "length" if room <= 0 else None
        self.thinking, self.thought, self.end_of_thinking = thinking, 0, list(end_of_thinking)
        self._forced: list[int] = []
        self._pieces: list[str] = []
        self._shown, self._held, self._tail = "", "", ""
        self._think()

    @property
    def text(self) -> str:
        """What was shown so far; all of the answer once it has ended."""
        return "".join(self._pieces)

    @property
    def answer(self) -> list[int]:
        """The tokens, without a stop token at the end."""
        return self.tokens[:-1] if self.tokens and self.tokens[-1] in self.stop_ids else self.tokens

    @property
    def forced(self) -> int | None:
        """The token that must come next; None where any may."""
        return self._forced[0] if self._forced and self.reason is None else None

    def feed(self, token: int, *, ended: bool = False) -> str:
        """Takes the next token.

        Args:
            token: its id.
            ended: whether the grammar allows nothing after it.

        Returns:
            Text that may be shown from now on; "" where none.
        """
        assert self.reason is None, f"the answer has ended: {self.reason}"
        early = len(self.tokens) < self.params.min_new_tokens
        self.tokens.append(token)
        if self._forced:
            self._forced.pop(0)
        if token in self.stop_ids and not early:
            return self.end("stop")
        inside = self.thinking
        if self.stream is not None:
            self.stream(token)
        if self.reason is None:
            self._think(inside)
            if ended:
                return self.end("stop")
            if len(self.tokens) >= self.room:
                return self.end("length")
            every, loop = len(self.tokens) % LOOKED_AT == 0, self.params.loop_tokens
            if loop and every and in_loop(self.tokens[-loop:], loop):
                return self.end("repetition")
        return self._show()

    def end(self, reason: Reason) -> str:
        """The answer ends here; the text that was held back."""
        if self.reason is None and self.stream is not None:
            self.stream.close()
            if self.reason is None:
                self._release(self._held)
        self.reason = self.reason or reason
        return self._show()

    def _take(self, piece: str) -> None:
        """Whole characters that a token completes."""
        tag = END_OF_THINKING if self.thinking else THINK
        self._tail += piece
        while (at := self._tail.find(tag)) >= 0:
            self.thinking, self._tail = not self.thinking, self._tail[at + len(tag) :]
            tag = END_OF_THINKING if self.thinking else THINK
        self._tail = self._tail[-len(END_OF_THINKING) :]
        stop = self.params.stop_strings
        if self.reason is not None:
            return None
        self._held += piece
        if len(self.tokens) <= self.params.min_new_tokens:
            return self._release(self._held)
        found = [(at + len(one), at) for one in stop if (at := self._held.find(one)) >= 0]
        if found:
            self.reason = "stop"
            return self._release(self._held[: min(found)[1]])
        kept = max((begun(self._held, one) for one in stop), default=0)
        return self._release(self._held[: len(self._held) - kept])

    def _release(self, text: str) -> None:
        self._held = self._held[len(text) :]
        self._shown += text

    def _show(self) -> str:
        text, self._shown = self._shown, ""
        if text:
            self._pieces.append(text)
        return text

    def _think(self, inside: bool = False) -> None:
        """Counts a token that was thought, and ends thinking at its cap."""
        self.thought += inside
        cap = self.params.max_thinking_tokens
        if self.thinking and cap is not None and self.thought >= cap and not self._forced:
            self._forced = list(self.end_of_thinking)


def ends_inside(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the turn that a prompt ends with is the assistant's and ends inside of ``<think>``.

    Args:
        ids: of the prompt.
        tokenizer: whose turns begin with ``<|im_start|>``; of another one, none ends so.
    """
    start = tokenizer.token_to_id("<|im_start|>")
    first = next((at + 1 for at in range(len(ids) - 1, -1, -1) if ids[at] == start), len(ids))
    role = tokenizer.decode(list(ids[first : first + len("assistant")]))
    text = tokenizer.decode(list(ids[first:])) if role.startswith("assistant") else ""
    return text.rfind(THINK) > text.rfind(END_OF_THINKING)


def begun(text: str, stop: str) -> int:
    """Characters at the end of a text that begin a stop string, at most."""
    most = min(len(text), len(stop) - 1)
    return next((count for count in range(most, 0, -1) if text.endswith(stop[:count])), 0)


def in_loop(last: list[int], count: int) -> bool:
    """Whether ``count`` tokens are at least 4 copies of one pattern, the last one perhaps in part."""
    if len(last) < count:
        return False
    for period in range(1, count // LOOP_REPEATS + 1):
        if last[-1] == last[-1 - period] and last[period:] == last[:-period]:
            return True
    return False
