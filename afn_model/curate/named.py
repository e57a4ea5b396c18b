"""Callables that a plan names as ``module:function``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from afn_model.checks import said, shown


def named(place: str, what: str) -> Callable[..., Any]:
    """The callable of this name.

    Args:
        place: "module:function".
        what: it is wanted for, as an error says it.

    Raises:
        ValueError: there is none.
    """
    module, _, name = place.partition(":") if isinstance(place, str) else ("", "", "")
    try:
        found = getattr(import_module(module), name) if module and name else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {shown(place)} cannot be imported ({said(error)}); module:function") from None
    if not callable(found):
        raise ValueError(f"{what} {shown(place)}: module:function is expected, the name of something to call")
    return found
