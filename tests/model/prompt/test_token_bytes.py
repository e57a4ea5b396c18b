"""Tokens as bytes: joined, those of a text are the text's, whatever characters they part."""

import pytest

from afn_model.prompt.token_bytes import token_bytes
from tests.tiny import tokenizer


@pytest.mark.parametrize("text", ["你好 and déjà vu \x00\x7f\xad", "A dog barks.\n", "<sound>x<|im_end|>"])
def test_bytes_of_tokens(text):
    some = tokenizer()
    ids = some.encode(text, add_special_tokens=False).ids
    assert b"".join(token_bytes(some, id) for id in ids) == text.encode()
    assert token_bytes(some, 10**6) == b""
