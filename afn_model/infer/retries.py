"""Requests to an endpoint that are tried again where that may help."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from afn_model.infer.elsewhere import SECONDS, ElsewhereError, base_of, complete

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try, and up to as much again
LONGEST_WAIT = 60.0  # seconds, whatever the endpoint asks for
RENAMED = {"max_tokens": "max_completion_tokens"}
T = TypeVar("T")


class RetryingEndpoint:
    """An endpoint whose errors that may pass (429, errors of the server, time-outs) are tried again, later each time or
    when the server says. A setting that it calls unsupported is left out from then on; ``max_tokens`` becomes
    ``max_completion_tokens`` first.

    Args:
        url: of the API, such as ``http://127.0.0.1:8000/v1``.
        key: ``Authorization: Bearer KEY``, if there is one.
        seconds: that a request may take.
        waits: seconds before each further try.
        broken: a reply that is no JSON or has no text is tried again, too.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        seconds: float = SECONDS,
        waits: Sequence[float] = WAITS,
        broken: bool = False,
    ):
        self.url, self.key, self.seconds, self.waits, self.broken = base_of(url), key, seconds, waits, broken
        self.refused, self.closed = set[str](), threading.Event()

    def complete(
        self, messages: Sequence[dict[str, Any]], fields: Mapping[str, Any], *, model: str | None
    ) -> dict[str, Any]:
        """The reply to a conversation; arguments and errors as of ``elsewhere.complete``."""

        def request() -> dict[str, Any]:
            sent = {RENAMED.get(name, name) if name in self.refused else name: value for name, value in fields.items()}
            sent = {name: value for name, value in sent.items() if name not in self.refused}
            try:
                return complete(self.url, messages, model=model, key=self.key, fields=sent, seconds=self.seconds)
            except ElsewhereError as error:
                unsupported = error.status == 400 and "unsupported" in error.said.lower()
                named = {name for name in sent if f"'{name}'" in error.said}
                if not (unsupported and named):
                    raise
                self.refused |= named
                return request()

        return self.retried(request)

    def without(self, fields: Mapping[str, Any]) -> list[str]:
        """Settings of a request that the endpoint does not take under any name."""
        return [name for name in fields if RENAMED.get(name, name) in self.refused]

    def retried(self, request: Callable[[], T]) -> T:
        """What a request returns in the end.

        Raises:
            ElsewhereError: of the last try, or of one after which no other may help; also once ``closed`` is set.
        """
        for wait in self.waits:
            try:
                return request()
            except ElsewhereError as error:
                if not (error.may_pass or (self.broken and error.status == 0)):
                    raise
                pause = min(LONGEST_WAIT, max(error.after, wait * random.uniform(1, 2)))  # not all again together
                if self.closed.wait(pause):
                    raise
        return request()
