"""Which row of the table a module belongs to, and whether its forward is the one that the row describes."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from afn_kernels.patch.architectures import ROWS
from afn_kernels.patch.report import is_ours
from afn_kernels.patch.state import find, parameters, written
from afn_kernels.patch.table import LOOKS, Replacement


@dataclass(frozen=True)
class Match:
    """A module's row.

    Args:
        row: the row.
        base: the class that it is about: the module's own, or one that it inherits from.
        alike: the user says that it fits, so its arguments are known by their order, not by their names.
    """

    row: Replacement
    base: type
    alike: bool = False


def match(module: nn.Module, like: Mapping[str, Replacement]) -> Match | None:
    """The row of the module's class, or of the nearest class above it that has one."""
    for cls in written(module).__mro__:
        if cls.__name__ in like:
            return Match(like[cls.__name__], cls, alike=True)
        if cls.__name__ in ROWS and cls.__module__.partition(".")[0] in ("transformers", "torch"):
            return Match(ROWS[cls.__name__], cls)
    return None


def known(like: Mapping[str, str | Replacement]) -> dict[str, Replacement]:
    """``like`` with rows in place of names."""
    if not isinstance(like, Mapping):
        raise TypeError(f"patch: like is a {type(like).__name__}, expected names of classes to names of known ones")
    found = {}
    for name, row in like.items():
        if isinstance(name, type):
            raise TypeError(f"patch: like has the class {name.__name__} as a key, expected its name")
        if not isinstance(name, str) or not isinstance(row, str | Replacement):
            raise TypeError(f"patch: like={{{name!r}: {row!r}}}, expected a name to a name, or to a row of the table")
        if isinstance(row, str) and row not in ROWS:
            raise ValueError(f"patch: like={{{name!r}: {row!r}}}, but no row is about a {row}")
        found[name] = ROWS[row] if isinstance(row, str) else row
    return found


def unfit(module: nn.Module, matched: Match, targets: list[nn.Module]) -> str:
    """Why this instance cannot be replaced; empty when it can."""
    row = matched.row
    for target in targets:
        there = target.__dict__.get(row.method)
        if is_ours(there):
            return "already patched"
        if there is not None and getattr(there, "__func__", None) is not getattr(type(target), row.method):
            return f"somebody else has replaced its {row.method}"
    if not hasattr(type(module), row.method):
        return f"it has no {row.method}"
    if name := overridden(written(module), matched.base, row.method):
        return f"it has a {name} of its own, which is not that of {matched.base.__name__}"
    version, whose = ("it", "its") if matched.alike else ("this version", "this version's")
    for name in row.needs:
        try:
            find(module, name)
        except AttributeError:
            return f"{version} has no {name}"
    if row.parameters and renamed(type(module), matched) is None:
        return f"{whose} {row.method} takes ({', '.join(parameters(type(module), row.method))})"
    for target in targets:
        file = getattr(getattr(type(target), row.method), "__module__", None)
        if file is not None and file not in {cls.__module__ for cls in type(target).__mro__}:
            return f"somebody else has replaced its class's {row.method}"
    if missing := [name for name in row.mentions if name not in words(type(module), row.method)]:
        return f"{whose} {row.method} knows no {missing[0]}"
    return ""


def renamed(cls: type, matched: Match) -> dict[str, str] | None:
    """What the replacement calls the arguments of this class's method, where names differ; None if they do not fit."""
    found, names = parameters(cls, matched.row.method), {}
    if len(found) < len(matched.row.parameters):
        return None
    for name, spec in zip(found, matched.row.parameters, strict=False):
        first, *others = spec.split("|")
        if name not in (first, *others) and not matched.alike:
            return None
        if name != first:
            names[name] = first
    if len(matched.row.parameters) == 1 < len(found):
        return None  # a norm or an MLP with more arguments computes something else
    return names


@functools.lru_cache
def overridden(cls: type, base: type, method: str) -> str:
    """What a subclass has of its own of a method, and of the methods that this one calls; empty if nothing."""
    for name in (method, *sorted(words(base, method))):
        there = inspect.getattr_static(base, name, None)
        if inspect.isfunction(there) and inspect.getattr_static(cls, name, None) is not there:
            return name
    return ""


def words(cls: type, method: str) -> set[str]:
    """Every name in the code of a method, under all its decorators."""
    code = getattr(inspect.unwrap(getattr(cls, method)), "__code__", None)
    return set() if code is None else {*code.co_names, *code.co_varnames}


def looks(module: nn.Module, loss_above: bool) -> tuple[str, str]:
    """The op, and a reason, for a module of no row that looks like something an op could do; ("", "") for others."""
    name = written(module).__name__
    for what, (ends, attributes) in LOOKS.items():
        if what == "a norm" and (list(module.children()) or not hasattr(module, "weight")):
            continue  # a layer called after the norm in it
        if name.endswith(ends) or all(hasattr(module, attribute) for attribute in attributes):
            return "", f"unknown: it looks like {what}, but is in no table"
    if not loss_above and hasattr(type(module), "loss_function") and _takes_labels(written(module)):
        return "linear_cross_entropy", "unknown: it takes labels, but no row says what its loss is"
    return "", ""


@functools.lru_cache
def _takes_labels(cls: type) -> bool:
    return "labels" in words(cls, "forward")
