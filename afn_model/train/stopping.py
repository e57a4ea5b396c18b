"""How a run is asked to end, and how it ends then: after the step under way, with a checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STOPPED = 75  # exit code of a clean stop: EX_TEMPFAIL of sysexits.h, "the same command goes on"
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
FIRST = "stopping after this step; a checkpoint will be written (again: stop now)\n"


class Stopped(Exception):
    """The run was asked to end (SIGTERM, SIGINT or SIGHUP) and has written its checkpoint."""


@contextmanager
def stop_signals(*, say: bool = True) -> Iterator[list[bool]]:
    """Yields a list that a signal to stop appends to; SIGINT after that ends the run at once.

    SIGHUP stays ignored where it was, as ``nohup`` has it.

    Args:
        say: answer the first signal on stderr.
    """
    asked: list[bool] = []

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(True)
        if say and len(asked) == 1:
            # Not through sys.stderr: the signal may have come in the middle of a write to it.
            with suppress(OSError):
                os.write(2, FIRST.encode())

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    numbers = [n for n in numbers if n != getattr(signal, "SIGHUP", 0) or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
