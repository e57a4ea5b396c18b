"""Errors and warnings as one line on stderr."""

from __future__ import annotations

import sys
from typing import Any

from afn_model.storage import shown


def show_error(error: Exception) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    print(f"afn: error: {shown(' '.join(text.split()))}", file=sys.stderr)


MODEL = ("av", "jinja2", "safetensors", "soundfile", "tokenizers", "tqdm", "yaml")  # modules of the extra


def without_model(error: ModuleNotFoundError) -> str:
    """What to do where the kernels were installed without what the model needs; any other error is raised.

    Raises:
        ModuleNotFoundError: the module is not one of the extra's.
    """
    if error.name not in MODEL:
        raise error
    return f"afn: error: {error.name} is not installed: {install_extra('model')}"


def install_extra(name: str) -> str:
    """The command for what pyproject.toml lists under this name; an installed afn-kernels stays as it is."""
    return f"pip install 'afn-kernels[{name}]'"


def show_finish(finish: str, about: str, file: str = "") -> None:
    """Says why an answer ended, where the model did not end it; ``about`` is its length, or which pieces are meant."""
    why = {
        "length": f"cut off {about} (--max-new-tokens, or the model's context)",
        "repetition": "ended as it went round in circles",
    }
    if finish != "stop":
        where = f"{shown(file)}: " if file else ""
        said = why.get(finish, "not ended by the model")
        print(f"afn: {where}the answer was {said}: finish {finish}", file=sys.stderr)


def show_warning(message: Warning, *_: Any) -> None:
    """Stands in for ``warnings.showwarning``."""
    print(f"afn: warning: {shown(' '.join(str(message).split()))}", file=sys.stderr)
