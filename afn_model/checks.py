"""What a value given from outside is, before anything is done with it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from importlib import import_module
from numbers import Integral, Real
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_listed(value: Any) -> bool:
    """Whether a value is a list of things in some form; text is none, nor is an array without axes."""
    listed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return listed and not isinstance(value, (str, bytes, dict)) and getattr(value, "ndim", 1) > 0


def shown(value: Any) -> str:
    """A value as an error message quotes it: one line of at most 80 characters, made in time that does not grow with
    the value: what a file's aliases repeat is not written out.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value)} bytes"
    try:
        return " ".join(_SHORT.repr(value).split())[:80]
    except Exception:  # such as an integer of more digits than Python writes
        return f"a value of type {type(value).__name__}"


def said(error: BaseException) -> str:
    """What another library's exception says, as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def whole(value: Any, what: str, least: int = 0, most: int = 2**31 - 1) -> int:
    """A whole number of a range; ValueError with what it is called where it is none."""
    if not is_whole(value) or not least <= value <= most:
        raise ValueError(f"{what} must be a whole number from {least} to {most}, got {shown(value)}")
    return int(value)


def number(value: Any, what: str, *, above: float = -math.inf) -> float:
    """A finite number above another; ValueError with what it is called where it is none."""
    try:
        fits = is_number(value) and math.isfinite(value) and value > above
        if fits:
            return float(value)
    except OverflowError:  # an integer that no float reaches
        pass
    expected = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
    raise ValueError(f"{what} must be {expected}, got {shown(value)}")


def share(value: Any, what: str) -> float:
    """A number from 0 to 1; ValueError with what it is called where it is none."""
    if not 0 <= number(value, what) <= 1:
        raise ValueError(f"{what} must be from 0 to 1, got {value}")
    return float(value)


def named(place: Any, what: str) -> Callable[..., Any]:
    """The callable of a name.

    Args:
        place: "module:function".
        what: it is wanted for, as an error says it.

    Raises:
        ValueError: there is none.
    """
    module, _, name = place.partition(":") if isinstance(place, str) else ("", "", "")
    try:
        found = getattr(import_module(module), name) if module and name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} {shown(place)} is no module:function ({said(error)})") from None
    if not callable(found):
        raise ValueError(f"{what} {shown(place)} is no module:function, the name of something to call")
    return found
