"""Errors and warnings as one line on stderr."""

from __future__ import annotations

import sys
from typing import Any


def show_error(error: Exception) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    print(f"afn: error: {' '.join(text.split())}", file=sys.stderr)


def show_warning(message: Warning, *_: Any) -> None:
    """Stands in for ``warnings.showwarning``."""
    print(f"afn: warning: {' '.join(str(message).split())}", file=sys.stderr)
