"""The bytes that a token of a byte-level tokenizer stands for, which may be a part of a character."""

from __future__ import annotations

from tokenizers import Tokenizer

# As GPT-2's vocabulary writes bytes: printable ones as themselves, the others as characters from 256 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of a token by its id; none where the tokenizer has no such token."""
    text = tokenizer.id_to_token(token) or ""
    if all(letter in _BYTES for letter in text):
        return bytes(_BYTES[letter] for letter in text)
    return text.encode()  # an added token, which is text
