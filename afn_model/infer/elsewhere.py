"""A model elsewhere that answers about text: any endpoint with OpenAI's chat completions."""

from __future__ import annotations

import http.client
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from afn_model.storage import shown

SECONDS = 120.0  # that an answer may take
MOST = 16 << 20  # bytes of an answer
PATH = "/chat/completions"
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # errors of HTTP after which a second try may have an answer


class ElsewhereError(ValueError):
    """The other model did not answer.

    Args:
        where: its address.
        said: what is wrong, without the address.
        status: of the HTTP response; 0 where there was none, or where it was no error.
        after: seconds that the response asks to wait (``Retry-After``).
        may_pass: a second try may have an answer: nobody answered, the server is busy or has failed.
    """

    def __init__(self, where: str, said: str, *, status: int = 0, after: float = 0.0, may_pass: bool = False):
        super().__init__(f"{shown(where)}: {said}")
        self.said, self.status, self.after, self.may_pass = said, status, after, may_pass


def complete(
    url: str,
    messages: Sequence[dict[str, Any]],
    *,
    model: str | None = None,
    key: str | None = None,
    fields: dict[str, Any] | None = None,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """The reply to a conversation.

    Args:
        url: of the API, such as ``http://127.0.0.1:8000/v1``; ``/chat/completions`` may follow.
        messages: of the conversation.
        model: its name; the first that the endpoint lists if None.
        key: ``Authorization: Bearer KEY``, if there is one; it goes nowhere else, as no redirect is followed.
        fields: of the request, beside these.
        seconds: that the whole exchange may take.

    Raises:
        ElsewhereError: no http address, nobody answers in time, an error, or a reply without text.
    """
    base, deadline = base_of(url), time.monotonic() + seconds
    if model is None:
        model = first_model(url, key=key, seconds=seconds)
    body = {**(fields or {}), "model": model, "messages": list(messages)}
    reply = _exchange(base + PATH, body, key, deadline)
    text_of(reply, base)
    return reply


def base_of(url: str) -> str:
    """The address of an API, without ``/chat/completions``.

    Raises:
        ElsewhereError: no http address.
    """
    base = url.rstrip("/").removesuffix(PATH)
    if not base.startswith(("http://", "https://")):
        raise ElsewhereError(url, "an address that begins with http:// or https:// is expected")
    return base


def first_model(url: str, *, key: str | None = None, seconds: float = SECONDS) -> str:
    """The name of the first model that an endpoint lists; arguments and errors as of ``complete``."""
    base = base_of(url)
    return _first_model(base, _exchange(f"{base}/models", None, key, time.monotonic() + seconds))


def text_of(reply: dict[str, Any], where: str = "") -> str:
    """What the other model says.

    Raises:
        ElsewhereError: no text in the reply.
    """
    try:
        texts = [choice["message"]["content"] for choice in reply["choices"]]
        text = texts[0] if all(isinstance(one, (str, type(None))) for one in texts) else None
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ElsewhereError(where, f"there is no text in the reply: {json.dumps(reply):.200}")
    return text


def post(url: str, path: str, body: dict[str, Any], *, key: str | None = None, seconds: float = SECONDS) -> Any:
    """The JSON object that another request has for an answer, such as that to ``/embeddings``; arguments and errors as
    of ``complete``."""
    base = base_of(url)
    return _exchange(base + path, body, key, time.monotonic() + seconds)


def post_file(
    url: str,
    path: str,
    fields: Sequence[tuple[str, str]],
    file: tuple[str, bytes],
    *,
    key: str | None = None,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """The JSON object that a form with a file has for an answer, such as that to ``/audio/transcriptions``.

    Args:
        url, key, seconds: as of ``complete``, and so are errors.
        path: after the address of the API.
        fields: (name, value) of the form.
        file: (name, bytes) of the field ``file``.
    """
    base, bound = base_of(url), secrets.token_hex(16)
    head = "".join(
        f'--{bound}\r\nContent-Disposition: form-data; name="{one}"\r\n\r\n{said}\r\n' for one, said in fields
    )
    head += f'--{bound}\r\nContent-Disposition: form-data; name="file"; filename="{file[0]}"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    raw = b"".join((head.encode(), file[1], f"\r\n--{bound}--\r\n".encode()))
    return _exchange(base + path, raw, key, time.monotonic() + seconds, f"multipart/form-data; boundary={bound}")


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key is for one host, and a POST is not sent twice."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _exchange(
    url: str, body: dict[str, Any] | bytes | None, key: str | None, deadline: float, kind: str = "application/json"
) -> dict[str, Any]:
    headers = {"Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    if data is not None:
        headers["Content-Type"] = kind
    opener = urllib.request.build_opener(_Unfollowed)
    try:
        request = urllib.request.Request(url, data, headers)
        with opener.open(request, timeout=max(0.001, deadline - time.monotonic())) as answer:
            raw = _read(url, answer, deadline)
    except urllib.error.HTTPError as error:
        with error:
            said, passes = f"{error.code} {error.reason}{_reason(error)}", error.code in PASSING
            raise ElsewhereError(url, said, status=error.code, after=_after(error), may_pass=passes) from None
    except TimeoutError:
        raise ElsewhereError(url, "no answer in time", may_pass=True) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ElsewhereError):
            raise
        reason = getattr(error, "reason", error)
        said = "no answer in time" if isinstance(reason, TimeoutError) else f"nobody answers: {reason}"
        raise ElsewhereError(url, said, may_pass=not isinstance(error, ValueError)) from None
    try:
        found = json.loads(raw)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # as it may be sent on
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ElsewhereError(url, "the reply is no JSON object")
    return found


def _read(url: str, answer: http.client.HTTPResponse, deadline: float) -> bytes:
    raw = bytearray()
    while block := answer.read1(1 << 16):
        raw += block
        if len(raw) > MOST:
            raise ElsewhereError(url, f"the reply has more than {MOST:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(raw)


def _after(error: urllib.error.HTTPError) -> float:
    """``Retry-After`` in seconds; 0 where it is none, or a date."""
    try:
        return min(3600.0, max(0.0, float(error.headers.get("Retry-After") or 0)))
    except ValueError:
        return 0.0


def _reason(error: urllib.error.HTTPError) -> str:
    """What the body of an error says, in OpenAI's form or as it stands."""
    try:
        text = error.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        told = json.loads(text)["error"]
        text = str(told["message"] if isinstance(told, dict) else told)
    except (ValueError, KeyError, TypeError):
        pass
    text = " ".join(text.split())
    return f": {text:.200}" if text else ""


def _first_model(url: str, listed: dict[str, Any]) -> str:
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ElsewhereError(url, "it lists no model; name one") from None
