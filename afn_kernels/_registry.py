"""How an op finds its implementation: a table per op, walked fastest first, with a reason for every refusal.

Importing this module imports torch and nothing heavier. An implementation names its function as "module:attribute"
and is imported when it is first chosen, so Triton, the compiled extension or a GPU are touched only by a call.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch

from afn_kernels import _autocast, _verdicts, _versions


def _always(*args, **kwargs) -> str:
    return ""


def constant(function: Callable) -> Callable:
    """torch.compile calls ``function`` while it traces, and keeps the result.

    What ``torch.compiler.assume_constant_result`` does, but that one imports torch._dynamo: half of torch's own time.
    """
    function._dynamo_marked_constant = True
    return function


# Attributes of a module and not a dictionary: torch.compile keeps a dictionary as it was at its first look in a graph.
_LOADED = ModuleType("afn_kernels._loaded")


@constant  # torch.compile does not trace an import: it happens while tracing
def _load(target: str) -> str:
    """Imports a "module:attribute", and returns the name by which ``_LOADED`` has it."""
    name = re.sub(r"\W", "_", target)
    if not hasattr(_LOADED, name):
        module, attribute = target.split(":")
        setattr(_LOADED, name, getattr(importlib.import_module(module), attribute))
        _versions.warn_if_newer("torch", "triton")
    return name


def _loaded(target: str) -> Callable:
    """The function of a "module:attribute", which eager calls find under that name from then on."""
    function = vars(_LOADED)[target] = getattr(_LOADED, _load(target))
    return function


_NOTHING: dict[str, str] = {}


@dataclass(frozen=True)
class Impl:
    """One implementation of an op.

    Args:
        name: what a caller writes as ``impl=``.
        target: ``"module:attribute"`` of the function, imported on first use.
        available: returns "" when this machine can run it at all, else the reason why not.
        supports: takes the call's arguments, returns "" when it can run them, else the reason why not.
        avoid: takes the call's arguments, returns why "auto" leaves it aside though it could run them, else "". A
            measurement overrules it.
        why: why it stands where it stands in the order of preference (a measured reason where there is one).
        never: as ``avoid``, and no measurement overrules it.
    """

    name: str
    target: str
    available: Callable[[], str] = _always
    supports: Callable[..., str] = _always
    avoid: Callable[..., str] = _always
    why: str = ""
    never: Callable[..., str] = _always

    @property
    def function(self) -> Callable:
        return getattr(_LOADED, _load(self.target))


@dataclass(frozen=True)
class ExplanationRow:
    """One line of an explanation: an implementation, whether it was chosen, and why or why not."""

    impl: str
    status: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found. ``chosen`` is the implementation that ``impl="auto"`` would run, or None."""

    op: str
    chosen: str | None
    rows: tuple[ExplanationRow, ...]

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen or 'nothing can run this call'}"]
        lines += [f"  {row.impl:<10} {row.status:<12} {row.reason}" for row in self.rows]
        return "\n".join(lines)


@dataclass
class Op:
    """An op's implementations, fastest first. The last one is the reference, which runs everything."""

    name: str
    impls: tuple[Impl, ...]
    _by_name: dict[str, Impl] = field(init=False)
    _orders: dict[tuple[str, ...], tuple[tuple[Impl, ...], tuple[Impl, ...]]] = field(init=False, default_factory=dict)

    def __post_init__(self):
        self._by_name = {impl.name: impl for impl in self.impls}
        OPS[self.name] = self

    def choose(self, impl: str, *args, **kwargs) -> Callable:
        """The function to call. Of ``impl="auto"`` it goes on with the next implementation where a launch fails."""
        chosen = self.pick(impl, *args, **kwargs)
        if torch.compiler.is_compiling():
            function = chosen.function
        else:
            function = vars(_LOADED).get(chosen.target) or _loaded(chosen.target)
            if impl == "auto" and chosen is not self.impls[-1] and not _preferred:
                function = partial(self._run, chosen, function)
        x = args[0]
        return _autocast.outside(function, x.device) if _autocast.enabled(x) else function

    def _run(self, chosen: Impl, function: Callable, *args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if _strict or torch.are_deterministic_algorithms_enabled() or not self._is_fault(error, args):
                raise
            return self._go_on(chosen, error, *args, **kwargs)

    @staticmethod
    def _is_fault(error: Exception, args: tuple) -> bool:
        plain = all(type(x) in (torch.Tensor, torch.nn.Parameter) for x in args if isinstance(x, torch.Tensor))
        return plain and _verdicts.in_launch(error)

    def lost(self, impl: str, error: Exception, what: str) -> None:
        """Sets aside an implementation whose launch failed where no other one goes on: in a backward."""
        if _strict or _preferred or torch.are_deterministic_algorithms_enabled() or impl == self.impls[-1].name:
            return
        if _verdicts.in_launch(error):
            _verdicts.set_aside(self.name, impl, error, f"{what}: {impl} failed")

    def _go_on(self, failed: Impl, error: Exception, *args, **kwargs):
        """What the next implementation gives; where none gives anything, the fault is not the failed one's alone."""
        signature, reason = _verdicts.signature(args), _verdicts.one_line(error)
        aside = _verdicts.ASIDE.setdefault(self.name, {}).setdefault(failed.name, {})
        aside[signature] = reason
        try:
            chosen = self.pick("auto", *args, **kwargs)
            found = self.choose("auto", *args, **kwargs)(*args, **kwargs)
        except Exception as other:
            refused = isinstance(other, (ValueError, TypeError))
            if refused or _verdicts.is_fault(other):
                aside.pop(signature, None)
            if _verdicts.in_launch(other) or (refused and _strict):
                raise error from None
            raise
        what = f"{self.name}: {failed.name} failed at its launch and is set aside for this process ({reason})"
        _verdicts.say(self.name, failed.name, f"{what}; {chosen.name} runs instead")
        return found

    def pick(self, impl: str, *args, **kwargs) -> Impl:
        """The implementation of a call. ``impl="auto"`` takes the first that can run; a named one runs or raises."""
        if impl is ASKED:
            raise Explained(self.explain(*args, **kwargs), args, kwargs)
        if impl == "auto":
            preferred = self._by_name.get(_preferred)
            if preferred and not preferred.available() and not preferred.supports(*args, **kwargs):
                return preferred
            order, measured, aside = self.impls, (), _NOTHING
            if args and (
                torch.compiler.is_compiling()
                or _verdicts.ASIDE
                or _verdicts.READ.get(args[0].get_device(), _NOTHING) is not None
            ):
                order, measured, aside = self._ranking(args, kwargs)
            for candidate in order:
                if candidate.available() or candidate.supports(*args, **kwargs):
                    continue
                if candidate.never is not _always and candidate.never(*args, **kwargs):
                    continue
                if candidate.name not in measured and candidate.avoid(*args, **kwargs):
                    continue
                if candidate.name in aside:
                    self._left_aside(candidate.name, aside[candidate.name])
                    continue
                if candidate.name in measured:
                    return candidate
                if candidate.name in PLAIN and args and getattr(args[0], "is_cuda", False):
                    self._fell_back(candidate, *args, **kwargs)
                elif candidate.name in PLAIN and "cpu" in self._by_name:
                    self._not_compiled(self._by_name["cpu"], *args, **kwargs)
                return candidate
            raise ValueError(str(self.explain(*args, **kwargs)))
        if impl not in self._by_name:
            raise ValueError(f"{self.name}: no implementation {impl!r}; there are {', '.join(self._by_name)} and auto")
        candidate = self._by_name[impl]
        reason = candidate.available() or candidate.supports(*args, **kwargs)
        if reason:
            raise ValueError(f"{self.name}: impl={impl!r} cannot run this call: {reason}")
        return candidate

    def _ranking(self, args: tuple, kwargs: dict) -> tuple[tuple[Impl, ...], tuple[str, ...], dict[str, str]]:
        """The implementations in the order in which they are asked, those that were measured, and why some are aside.

        Without findings of ``afn_kernels.verify`` on the device of the call, and without a failure in this process, it
        is the table's order.
        """
        if not args:
            return self.impls, (), {}
        x = args[0]
        if torch.compiler.is_compiling():
            names, measured, aside = _while_tracing(self.name, x.device.type, x.device.index)
            if not measured and not aside:
                return self.impls, (), {}
            return tuple(self._by_name[name] for name in names), measured, dict(aside)
        found = _verdicts.of(x.get_device())
        if found is None and not _verdicts.ASIDE:
            return self.impls, (), {}
        aside, measured = _NOTHING, ()
        if _verdicts.ASIDE or (found is not None and self.name in found.failed):
            aside = self._aside(found, _verdicts.signature(args))
        if found is not None and self.name in found.order:
            measured = found.fastest(self.name, args, kwargs)
        return self._in_order(measured), measured, aside

    def _in_order(self, measured: tuple[str, ...]) -> tuple[Impl, ...]:
        if not measured:
            return self.impls
        impls, order = self._orders.get(measured, ((), ()))
        if impls is not self.impls:
            first = [self._by_name[name] for name in measured if name in self._by_name]
            order = (*first, *(row for row in self.impls if row.name not in measured))
            self._orders[measured] = self.impls, order
        return order

    def _aside(self, found: _verdicts.Verdicts | None, signature: tuple | None) -> dict[str, str]:
        """Why implementations are left aside; never the last one, which is what runs when nothing else does."""
        why = {} if found is None else dict(found.failed.get(self.name, {}))
        folder = self.impls[-1].target.split(".")[1]
        for name in (self.name, folder) if _verdicts.ASIDE else ():
            for impl, calls in tuple(_verdicts.ASIDE.get(name, {}).items()):
                reason = calls.get(None) or (
                    next(iter(calls.values()), "") if signature is None else calls.get(signature)
                )
                if reason:
                    why[impl] = f"set aside: {reason}"
        why.pop(self.impls[-1].name, None)
        return why

    def _left_aside(self, impl: str, reason: str) -> None:
        if not torch.compiler.is_compiling() and not reason.startswith("set aside"):  # which was said when it failed
            remedy = "afn doctor --verify looks again"
            _verdicts.say(
                self.name, impl, f"{self.name}: impl='auto' leaves {impl} aside on this machine ({reason}); {remedy}"
            )

    def _not_compiled(self, row: Impl, *args, **kwargs) -> None:
        """Says so, once, if the call would have run in the compiled extension."""
        if row.available() and not row.supports(*args, **kwargs) and not row.avoid(*args, **kwargs):
            getattr(_LOADED, _load("afn_kernels.cpu:warn_missing"))(self.name)

    def _fell_back(self, chosen: Impl, *args, **kwargs) -> None:
        """Counts a call on a GPU that no kernel takes, and says so the first time."""
        if torch.compiler.is_compiling() or not any(row.name not in PLAIN for row in self.impls):
            return
        rows = {row.impl: row.reason for row in self.explain(*args, **kwargs).rows if row.impl not in PLAIN}
        kernel = "triton" if "triton" in rows else next(iter(rows))
        found = Fallback(self.name, chosen.name, f"{kernel}: {rows[kernel]}")
        if _strict:
            raise ValueError(str(found))
        FALLBACKS[found] += 1
        if FALLBACKS[found] == 1:
            warnings.warn(f"{found} (said once; afn_kernels.report() counts)", stacklevel=5)

    def explain(self, *args, **kwargs) -> Explanation:
        """Which implementation would run and why. Without arguments, what this machine could run at all."""
        if args:
            order, measured, aside = self._ranking(args, kwargs)
        else:
            here = _verdicts.of(torch.cuda.current_device() if torch.cuda.is_available() else -1)
            order, measured, aside = self.impls, (), self._aside(here, None)
        rows, chosen = {}, None
        for impl in order:
            reason = impl.available()
            status = "unavailable"
            if not reason and (args or kwargs):
                reason, status = impl.supports(*args, **kwargs), "unsupported"
                if not reason:
                    reason, status = impl.never(*args, **kwargs), "avoided"
                if not reason and impl.name not in measured:
                    reason = impl.avoid(*args, **kwargs)
            if not reason and impl.name in aside:
                reason, status = aside[impl.name], "set aside" if aside[impl.name].startswith("set aside") else "failed"
                reason = reason.removeprefix("set aside: ")
            if reason:
                rows[impl.name] = ExplanationRow(impl.name, status, reason)
                continue
            status, chosen = ("possible", chosen) if chosen else ("chosen", impl.name)
            why = impl.why if impl.name not in measured else f"{_took(self.name, impl.name, args, kwargs)}; {impl.why}"
            rows[impl.name] = ExplanationRow(impl.name, status, why)
        return Explanation(self.name, chosen, tuple(rows[impl.name] for impl in self.impls))


@constant  # kept while torch.compile traces: sizes are symbols there, and what holds for all of them counts
def _while_tracing(op: str, device: str, index: int | None) -> tuple:
    """Names in order, those measured fastest at every size, and (name, reason) of those that are aside."""
    table = OPS.get(op)
    if table is None or device not in ("cpu", "cuda"):
        return (), (), ()
    found = _verdicts.of(-1 if device == "cpu" else index or 0)
    orders = set() if found is None else {x for kinds in found.order.get(op, {}).values() for x in kinds.values()}
    measured = orders.pop() if len(orders) == 1 else ()
    return (
        tuple(row.name for row in table._in_order(measured)),
        measured,
        tuple(table._aside(found, None).items()),
    )


def _took(op: str, impl: str, args: tuple, kwargs: dict) -> str:
    found = _verdicts.of(args[0].get_device())
    if found is None:
        return "measured here"
    sizes = found.seconds[op].get(_verdicts.kind(op, args, kwargs), {})
    size = _verdicts.nearest(sizes, _verdicts.octave(op, args))
    return f"{1e3 * sizes[size][impl]:.3g} ms measured here at a call of this size"


ASKED: object = object()  # as ``impl``: a call comes as far as the choice, and answers with it


class Explained(Exception):
    """The explanation of a call that was made to ask, and the arguments that came as far as the choice."""


@dataclass(frozen=True)
class Fallback:
    """A call on a GPU that ran in plain PyTorch, and why the kernel did not take it."""

    op: str
    impl: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op} runs in plain PyTorch ({self.impl}) on this GPU: {self.reason}"


PLAIN = ("sdpa", "matmul", "reference")  # implementations in PyTorch's own ops
OPS: dict[str, Op] = {}
FALLBACKS: Counter[Fallback] = Counter()
_preferred = ""
_strict = False


def report() -> dict[Fallback, int]:
    """Calls on a GPU that ran in plain PyTorch because no kernel takes them, {op, implementation and reason: calls}.

    Each is a warning when it happens first. Calls that torch.compile traced are not counted.
    """
    return dict(FALLBACKS)


@contextmanager
def strict():
    """Within it, a call on a GPU that no kernel takes is a ValueError with the reason instead of a warning.

    Raises:
        ValueError: from the op, before anything ran.
    """
    global _strict
    before, _strict = _strict, True
    try:
        yield
    finally:
        _strict = before


@contextmanager
def prefer(impl: str):
    """Within it, ``impl="auto"`` takes the implementation of this name wherever it can run the call.

    Args:
        impl: for example "reference" to look for a kernel's fault, or "triton" to run kernels under the interpreter.

    Raises:
        ValueError: no op has an implementation of this name.
    """
    global _preferred
    names = {row.name for op in OPS.values() for row in op.impls}
    if impl not in names:
        raise ValueError(f"no implementation {impl!r}; there are {', '.join(sorted(names))}")
    before, _preferred = _preferred, impl
    try:
        yield
    finally:
        _preferred = before
