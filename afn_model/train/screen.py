"""Output that may go away: a pipe whose reader has ended, a terminal that is closed."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Lasting(io.TextIOBase):
    """A text stream that passes on what is written until that fails, and drops it from then on.

    Args:
        stream: a stream, or None where the process was started with it closed.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def _try(self, method: str, *values: Any) -> None:
        if self.stream is None:
            return
        try:
            getattr(self.stream, method)(*values)
        except (OSError, ValueError):  # ValueError: the stream was closed in this process
            stream, self.stream = self.stream, None
            # What the stream still holds is written when the process ends, which must not fail then either.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
                stream.flush()


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within it, nothing fails because stdout or stderr is closed, or a pipe without a reader."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Lasting(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
