"""Standard input, output and error as commands need them, whatever a shell has done to them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


def prepare() -> bool:
    """Puts the null device where a stream is closed (``>&-``), and lets any bytes through.

    A stream that Python found closed is None. The null device also takes its number, which else the next file that is
    opened would have, with all that is printed to it. Bytes of standard input that are not UTF-8 arrive as surrogates,
    which are refused by the line that holds them; characters that standard output cannot hold are written as escapes,
    which JSON reads.

    Returns:
        whether there is a standard output.
    """
    there = sys.stdout is not None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  open from now on
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(io.UnsupportedOperation):  # somebody has read from it before
                reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")
    return there


def give_up_stdout() -> None:
    """Sends what cannot be written to the null device: Python flushes stdout at exit, which must not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
