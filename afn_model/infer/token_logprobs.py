"""Log-probabilities of tokens as OpenAI's API writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

LEAST = -9999.0  # in place of what JSON has no number for: the log-probability of a token that may not come


class TokenLogprobs:
    """Writes tokens with their log-probabilities.

    Args:
        tokenizer: whose tokens they are.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._written = lru_cache(65_536)(self._write)

    def entries(
        self, tokens: Sequence[int], logprobs: Sequence[float], top: Sequence[Iterable[tuple[int, float]]] = ()
    ) -> list[dict[str, Any]]:
        """``logprobs.content`` of a choice.

        Args:
            tokens: of the answer.
            logprobs: of at least as many tokens.
            top: the likeliest tokens in the place of each, (id, log-probability); none where not asked for.
        """
        found = [self.entry(token, logprob) for token, logprob in zip(tokens, logprobs)]  # noqa: B905
        for entry, likeliest in zip(found, top or [()] * len(found)):  # noqa: B905
            entry["top_logprobs"] = [self.entry(token, logprob) for token, logprob in likeliest]
        return found

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """``{"token", "bytes", "logprob"}``; bytes of a part of a character too, by which tokens can be joined."""
        text, data = self._written(token)
        return {"token": text, "bytes": list(data), "logprob": max(logprob, LEAST)}

    def _write(self, token: int) -> tuple[str, bytes]:
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        if "\N{REPLACEMENT CHARACTER}" in text:  # bytes that are no whole character
            letters = self.tokenizer.id_to_token(token) or ""
            if all(letter in BYTES for letter in letters):
                return text, bytes(BYTES[letter] for letter in letters)
        return text, text.encode()


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with: printable Latin-1 is itself, others count from 256."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTES = _byte_letters()
writer = lru_cache(2)(TokenLogprobs)  # by tokenizer: what it knows of tokens is kept for later answers
