"""One line that makes somebody else's model call the ops, and says what it did."""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from afn_kernels import _versions
from afn_kernels.patch.match import Match, known, looks, match, renamed, unfit
from afn_kernels.patch.report import STATE, Entry, PatchReport
from afn_kernels.patch.state import Owner, State, class_name, find, parameters, theirs
from afn_kernels.patch.table import LEFT_ALONE, OPS, UNMEASURED, Replacement

COMPILED = "compiled before: graphs are made anew at the next call"
IMPLS = ("auto", "reference", "triton")


def patch(
    model: nn.Module,
    *,
    only: str | Collection[str] | None = None,
    skip: str | Collection[str] = (),
    like: Mapping[str, str | Replacement] | None = None,
    impl: str = "auto",
) -> PatchReport:
    """Makes the modules of a transformers model call the ops: Qwen2RMSNorm → rms_norm, Qwen2MLP → swiglu, and so on.

    Each instance gets a forward of its own; classes, parameters, buffers, hooks and state dict stay what they are, as
    do FSDP2, peft and gradient checkpointing around them. A call that an op cannot run (dtypes that differ, dropout,
    attention weights wanted, a mask that is neither padding nor packing) runs the module's own forward, and is counted
    in ``report.fallbacks``. A subclass that does not override forward is replaced as its base is.

    With labels the loss comes from ``linear_cross_entropy``, and ``outputs.logits`` are computed when somebody reads
    them: read them before the optimiser's step. accelerate's mixed precision (``Trainer(bf16=True)``) reads all
    outputs; a model that was loaded in bfloat16 is spared its logits.

    All of this holds under torch.compile too, but for a loss under autocast or FSDP2 there. A model that is compiled
    already may be passed: its graphs are made anew at the next call. Under FSDP2 the loss is replaced while training,
    and reading the logits then gathers the head's weight: all ranks read them, or none. A deep copy stays patched for
    good; ``nn.DataParallel`` is not for patched models.

    Args:
        model: an instance of a model of ``docs/using-the-kernels.md``'s table, a part of one, or anything that contains
            one. Of any other model the norms of torch are replaced, and the report says what else it may have.
        only: names of ops to use, or one name; None means all.
        skip: names of ops not to use, or one name.
        like: for classes of one's own, by name: the class of transformers that computes the same from attributes of
            the same names ("MyRMSNorm": "LlamaRMSNorm"), or a row of ``afn_kernels.patch.table``, which can say other
            names. Arguments are taken in the order of that class.
        impl: "auto" replaces what is faster on the device where the model is now (move it first) and lets each op
            choose; "reference" or "triton" replaces everything it can, with that implementation.

    Returns:
        A ``PatchReport``: ``print`` it; ``report.replaced``, ``report.skipped`` with reasons, ``report.fallbacks``, and
        ``report.revert()``.

    Raises:
        TypeError: a class, or something else that is not a module; ``only``, ``skip`` or ``like`` of another type.
        ValueError: an op, an implementation or a class in ``like`` of another name.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"patch: expected an instance of a model, got {what}")
    only = None if only is None else _names("only", only)
    skip = _names("skip", skip)
    unknown = sorted({*(only or ()), *skip} - set(OPS))
    if unknown:
        raise ValueError(f"patch: no op {', '.join(map(repr, unknown))}; there are {', '.join(OPS)}")
    if impl not in IMPLS:
        raise ValueError(f"patch: impl is {impl!r}, expected one of {', '.join(IMPLS)}")
    wanted = {op for op in OPS if (only is None or op in only) and op not in skip}
    _versions.warn_if_newer("transformers")
    rows, used = known({} if like is None else like), set()
    report = PatchReport()
    for path, module, above in _walk(model):
        matched = match(module, rows)
        if matched is None:
            op, why = looks(module, any(_has_loss(parent, rows) for parent in above))
            if why:
                report.skipped.append(Entry(path, class_name(module), op, why))
            continue
        used.add(matched.base.__name__)
        _replace(report, path, module, above, matched, wanted, impl)
    report.notes += [f"like: this model has no {name}" for name in rows if name not in used]
    if report.replaced and _compiled(model):
        report.notes.append(COMPILED)
    return report


def _names(argument: str, names: str | Collection[str]) -> set[str]:
    if isinstance(names, str):
        return {names}
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"patch: {argument} is {names!r}, expected the name of an op or a list of them")
    return set(names)


def _has_loss(module: nn.Module, rows: Mapping[str, Replacement]) -> bool:
    matched = match(module, rows)
    return matched is not None and "linear_cross_entropy" in (*matched.row.ops, *matched.row.without)


def _walk(
    module: nn.Module, path: str = "", above: tuple[nn.Module, ...] = (), seen: set | None = None
) -> Iterator[tuple[str, nn.Module, tuple[nn.Module, ...]]]:
    """Every module once, with its path and those that contain it, outermost first."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    yield path, module, above
    for name, child in module.named_children():
        yield from _walk(child, f"{path}.{name}" if path else name, (*above, module), seen)


def _replace(
    report: PatchReport,
    path: str,
    module: nn.Module,
    above: tuple[nn.Module, ...],
    matched: Match,
    wanted: set[str],
    impl: str,
) -> None:
    """Enters every op of one module in the report, and installs the replacement if it is to call any."""
    row, name = matched.row, class_name(module)
    targets = _targets(module, row)
    if any(there is target for there, _ in report._installed for target in targets):
        return  # the last norm of an encoder, which pools already
    device = next((tensor.device.type for tensor in (*module.parameters(), *module.buffers())), "cpu")
    left_alone = {} if impl != "auto" else LEFT_ALONE.get(device, dict.fromkeys(OPS, f"nobody timed it on {device}"))
    reason = unfit(module, matched, targets) if row.ops else ""
    ops = set()
    for op in row.ops:
        why = "" if op in wanted else "not asked for"
        why = why or reason or _check(op, module, row, above) or left_alone.get(op, "")
        if why:
            report.skipped.append(Entry(path, name, op, why))
        else:
            ops.add(op)
            report.replaced.append(Entry(path, name, op, UNMEASURED if device == "cuda" and impl == "auto" else ""))
    report.skipped += [Entry(path, name, op, why) for op, why in row.without.items() if op in wanted]
    if not ops:
        return
    make = functools.partial(State, impl, frozenset(ops), fallbacks=report.fallbacks, method=row.method)
    if len(targets) == 2:  # the pooling leaves its work to the norm after it: each knows the other
        pool, norm = targets
        _install(report, pool, "replacements:put_off_pooling", make(partner=norm))
        _install(report, norm, "replacements:layer_norm", make(partner=pool))
        return
    options = {**row.options, "parameters": parameters(type(module), row.method)}
    here = make(options=options)
    if "rotary" in ops:
        turns: Any = next(parent for parent in reversed(above) if hasattr(parent, "rotary_emb"))
        options["turned_by"] = type(turns.rotary_emb).forward
        here.owner = Owner(turns if theirs(type(turns).forward) else None)
    _install(report, module, row.target, here, renamed(type(module), matched) or {})


def _targets(module: nn.Module, row: Replacement) -> list[nn.Module]:
    """The modules whose method is replaced: the one of the row, or its pooling and norm."""
    names = [row.options[name] for name in ("pool", "norm") if name in row.options]
    return [find(module, name) for name in names if hasattr(module, name)] if names else [module]


def _install(
    report: PatchReport,
    module: nn.Module,
    target: str,
    here: State,
    names: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    function, original = _load(target), getattr(type(module), here.method)
    module.__dict__[STATE] = here
    module.__dict__[here.method] = types.MethodType(_standing_in(function, original, tuple(names.items())), module)
    report._installed.append((module, here.method))


@functools.lru_cache
def _standing_in(function, original, names: tuple[tuple[str, str], ...]):
    """``function`` under the name and signature of the method it replaces: generate and Trainer read both.

    ``names`` are arguments that the function calls otherwise.
    """
    if names:
        others = dict(names)

        @functools.wraps(original)
        def method(self, *args, **kwargs):
            return function(self, *args, **{others.get(name, name): value for name, value in kwargs.items()})
    else:

        @functools.wraps(original)
        def method(self, *args, **kwargs):
            return function(self, *args, **kwargs)

    setattr(method, STATE, method)
    return method


def _load(target: str):
    module, attribute = target.split(":")
    return getattr(importlib.import_module(f"afn_kernels.patch.{module}"), attribute, None)


def _check(op: str, module: nn.Module, row: Replacement, above: tuple[nn.Module, ...]) -> str:
    """What the op's own check in the replacement's file says against this instance."""
    check = _load(f"{row.target.partition(':')[0]}:check_{op}")
    return check(module, row, above) if check else ""


def _compiled(model: nn.Module) -> bool:
    """Whether torch.compile may have traced a part of this model, or may trace it through the model's compile()."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
