"""Recordings inside a request: base64, and ``data:`` addresses."""

from __future__ import annotations

import base64
import binascii
import re

from afn_model.serve.errors import ApiError

PIECE = 1 << 20  # characters that are decoded at once: meanwhile no other thread runs Python
_MIME, _OPTION = r"[\w.+-]{1,80}/[\w.+-]{1,80}", r";[\w.+-]{1,80}=[\w.+\"-]{1,80}"
_HEAD = re.compile(rf"(?i:data):({_MIME})?((?:{_OPTION})*);(?i:base64),", re.ASCII)
_LONGEST_HEAD = 1024


def decode_base64(text: str, most: int, param: str | None = None, *, piece: int = PIECE) -> bytes:
    """The bytes that base64 stands for (RFC 4648 §4): no other characters, and padded.

    Half a second for 60 MB: call it in a thread; others have their turn after every piece.

    Args:
        text: base64.
        most: bytes that it may stand for; looked at before anything is decoded.
        param: what errors call it.
        piece: characters that are decoded at once, a multiple of four.

    Raises:
        ApiError: 413 longer, 400 no base64.
    """
    size = len(text) // 4 * 3 - text[-2:].count("=")
    if size > most:
        raise ApiError(413, f"the recording has more than the {most:,} bytes that are allowed", param=param)
    try:
        if len(text) % 4:
            raise ValueError("its length is no multiple of 4")
        if "=" in text[:-2]:
            raise ValueError("padding inside of it")
        return b"".join(base64.b64decode(text[at : at + piece], validate=True) for at in range(0, len(text), piece))
    except (binascii.Error, ValueError) as error:
        what = f"the recording is not base64: {str(error).lower()}"
        raise ApiError(400, what, param=param, code="invalid_base64") from None


def decode_data_url(url: str, most: int, param: str | None = None) -> bytes:
    """The bytes of a ``data:`` address (RFC 2397), which must be base64. What it says of their type is not believed.

    Raises:
        ApiError: what ``decode_base64`` raises, 400 another kind of address.
    """
    head = _HEAD.match(url, 0, _LONGEST_HEAD)
    if head is None:
        what = "an address with data must be 'data:TYPE;base64,' and base64 behind it"
        raise ApiError(400, what, param=param, code="invalid_data_url")
    return decode_base64(url[head.end() :], most, param)
