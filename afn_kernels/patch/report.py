"""What ``patch`` did to a model, and how to undo it."""

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

STATE = "_afn_patch"


@dataclass(frozen=True)
class Entry:
    """One op in one module: replaced, or left alone for a reason."""

    path: str
    type: str
    op: str
    reason: str = ""


@dataclass
class PatchReport:
    """The outcome of ``afn_kernels.patch``; ``print`` shows it as a table.

    Args:
        replaced: ops that modules now call, one entry per module and op.
        skipped: what was left alone, each with the reason.
        fallbacks: how often a patched module ran its original forward because an op could not run the call, by
            (type, reason). It grows as the model runs; calls inside a compiled graph are not counted.
        notes: what else there is to know.
    """

    replaced: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)
    fallbacks: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _installed: list[tuple[torch.nn.Module, str]] = field(default_factory=list, repr=False)

    def revert(self) -> None:
        """Takes out what this call of ``patch`` put in: the modules' own methods are there again, bit for bit.

        A second ``revert`` does nothing. A forward that somebody else has wrapped since then stays, with a warning.
        """
        kept = []
        for module, method in self._installed:
            if not is_ours(module.__dict__.get(method)):
                what = f"{type(module).__name__}.{method}"
                if method in module.__dict__:
                    warnings.warn(f"{what} was replaced after the patch: left as it is", stacklevel=2)
                    kept.append((module, method))
                continue
            delattr(module, method)
            module.__dict__.pop(STATE, None)
        self._installed[:] = kept

    def __str__(self) -> str:
        rows = [("replaced", f"{n} x {t}", op, why) for (t, op, why), n in _grouped(self.replaced)]
        rows += [("skipped", f"{n} x {t}", op, why) for (t, op, why), n in _grouped(self.skipped)]
        rows += [("fell back", f"{n} calls of {t}", "", why) for (t, why), n in self.fallbacks.items()]
        if not rows:
            return "nothing in this model is known to afn_kernels"
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = []
        for status, what, op, why in rows:
            arrow = "->" if status == "replaced" else "  "
            lines.append(f"{status:<{widths[0]}}  {what:<{widths[1]}} {arrow} {op:<{widths[2]}}  {why}".rstrip())
        return "\n".join([*lines, *self.notes])


def is_ours(function) -> bool:
    """Whether ``patch`` made this method."""
    function = getattr(function, "__func__", None)
    return function is not None and getattr(function, STATE, None) is function  # functools.wraps copies the mark


def _grouped(entries: Iterable[Entry]) -> list[tuple[tuple[str, str, str], int]]:
    return list(Counter((entry.type, entry.op, entry.reason) for entry in entries).items())
