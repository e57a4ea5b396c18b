"""One line that makes somebody else's model call the ops, and says what it did."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from afn_kernels import _versions
from afn_kernels.patch.report import STATE, Entry, PatchReport, is_ours
from afn_kernels.patch.state import State, class_name, find, written
from afn_kernels.patch.table import LEFT_ALONE, LOOKS, OPS, ROWS, UNMEASURED, Replacement

COMPILED = (
    "compiled before: graphs are made anew at the next call; in them the loss and masked attention stay as they were"
)
IMPLS = ("auto", "reference", "triton")


def patch(
    model: nn.Module, *, only: Collection[str] | None = None, skip: Collection[str] = (), impl: str = "auto"
) -> PatchReport:
    """Makes the modules of a transformers model call the ops: Qwen2RMSNorm → rms_norm, Qwen2MLP → swiglu, and so on.

    Each instance gets a forward of its own; classes, parameters, buffers, hooks and state dict stay what they are, as
    do FSDP2, peft and gradient checkpointing around them. A call that an op cannot run (dtypes that differ, dropout,
    attention weights wanted, a mask that is neither padding nor packing) runs the module's own forward, and is counted
    in ``report.fallbacks``.

    With labels the loss comes from ``linear_cross_entropy``, and ``outputs.logits`` are computed when somebody reads
    them: read them before the optimiser's step. accelerate's mixed precision (``Trainer(bf16=True)``) reads all
    outputs; a model that was loaded in bfloat16 is spared its logits.

    Under torch.compile the loss stays that of transformers, and so does attention with a mask, which a decoder always
    has there. A model that is compiled already may be passed too: its graphs are made anew at the next call. A deep
    copy stays patched for good; ``nn.DataParallel`` is not for patched models.

    Args:
        model: an instance of MusicFlamingo, AudioFlamingo3, Qwen2-Audio, Whisper, Voxtral, Llama, Mistral, Qwen2 or
            Qwen3, a part of one, or anything that contains one. Of any other model nothing is replaced, and the
            report says what it may have been.
        only: names of ops to use; None means all.
        skip: names of ops not to use.
        impl: "auto" replaces what is faster on the device where the model is now (move it first) and lets each op
            choose; "reference" or "triton" replaces everything it can, with that implementation.

    Returns:
        A ``PatchReport``: ``print`` it; ``report.replaced``, ``report.skipped`` with reasons, ``report.fallbacks``, and
        ``report.revert()``.

    Raises:
        TypeError: a class, or something else that is not a module.
        ValueError: an op or an implementation of another name.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"patch: expected an instance of a model, got {what}")
    unknown = sorted({*(only or ()), *skip} - set(OPS))
    if unknown:
        raise ValueError(f"patch: no op {', '.join(map(repr, unknown))}; there are {', '.join(OPS)}")
    if impl not in IMPLS:
        raise ValueError(f"patch: impl is {impl!r}, expected one of {', '.join(IMPLS)}")
    wanted = {op for op in OPS if (only is None or op in only) and op not in skip}
    _versions.warn_if_newer("transformers")
    report = PatchReport()
    for path, module, above in _walk(model):
        theirs = written(module).__module__.partition(".")[0] in ("transformers", "torch")
        row = ROWS.get(class_name(module)) if theirs else None
        if row is None or (row.under and not any(name.startswith(row.under) for name in map(class_name, above))):
            _look(report, path, module)
            continue
        _replace(report, path, module, above, row, wanted, impl)
    if report.replaced and _compiled(model):
        report.notes.append(COMPILED)
    return report


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


def _look(report: PatchReport, path: str, module: nn.Module) -> None:
    """Reports a module of no row that looks like something an op could do."""
    name = class_name(module)
    for what, (ends, attributes) in LOOKS.items():
        if name.endswith(ends) or all(hasattr(module, attribute) for attribute in attributes):
            report.skipped.append(Entry(path, name, "", f"unknown: it looks like {what}, but is in no table"))
            return


def _replace(
    report: PatchReport,
    path: str,
    module: nn.Module,
    above: tuple[nn.Module, ...],
    row: Replacement,
    wanted: set[str],
    impl: str,
) -> None:
    """Enters every op of one module in the report, and installs the replacement if it is to call any."""
    targets = _targets(module, row)
    if any(there is target for there, _ in report._installed for target in targets):
        return  # the last norm of an encoder, which pools already
    device = next((tensor.device.type for tensor in (*module.parameters(), *module.buffers())), "cpu")
    left_alone = {} if impl != "auto" else LEFT_ALONE.get(device, dict.fromkeys(OPS, f"nobody timed it on {device}"))
    reason = _unfit(module, row, targets)
    ops = set()
    for op in row.ops:
        why = "" if op in wanted else "not asked for"
        why = why or reason or _check(op, module, row, above) or left_alone.get(op, "")
        if why:
            report.skipped.append(Entry(path, row.type, op, why))
        else:
            ops.add(op)
            report.replaced.append(Entry(path, row.type, op, UNMEASURED if device == "cuda" and impl == "auto" else ""))
    if not ops:
        return
    make = functools.partial(State, impl, frozenset(ops), fallbacks=report.fallbacks, method=row.method)
    if len(targets) == 2:  # the pooling leaves its work to the norm after it: each knows the other
        pool, norm = targets
        _install(report, pool, "replacements:put_off_pooling", make(partner=norm))
        _install(report, norm, "replacements:layer_norm", make(partner=pool))
        return
    options = {**row.options, "parameters": _parameters(module, row.method)}
    rotary: Any = next((parent.rotary_emb for parent in reversed(above) if hasattr(parent, "rotary_emb")), None)
    _install(report, module, row.target, make(options=options, partner=rotary if "rotary" in ops else None))


def _targets(module: nn.Module, row: Replacement) -> list[nn.Module]:
    """The modules whose method is replaced: the one of the row, or its pooling and norm."""
    names = [row.options[name] for name in ("pool", "norm") if name in row.options]
    return [find(module, name) for name in names if hasattr(module, name)] if names else [module]


def _install(report: PatchReport, module: nn.Module, target: str, here: State) -> None:
    function, original = _load(target), getattr(type(module), here.method)
    module.__dict__[STATE] = here
    module.__dict__[here.method] = types.MethodType(_standing_in(function, original), module)
    report._installed.append((module, here.method))


@functools.lru_cache
def _standing_in(function, original):
    """``function`` under the name and signature of the method it replaces: generate and Trainer read both."""

    @functools.wraps(original)
    def method(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    setattr(method, STATE, method)
    return method


def _load(target: str):
    module, attribute = target.split(":")
    return getattr(importlib.import_module(f"afn_kernels.patch.{module}"), attribute, None)


def _unfit(module: nn.Module, row: Replacement, targets: list[nn.Module]) -> str:
    """Why this instance cannot be replaced; empty when it can."""
    for target in targets:
        there = target.__dict__.get(row.method)
        if is_ours(there):
            return "already patched"
        if there is not None and getattr(there, "__func__", None) is not getattr(type(target), row.method):
            return f"somebody else has replaced its {row.method}"
    for name in row.needs:
        try:
            find(module, name)
        except AttributeError:
            return f"this version has no {name}"
    if row.parameters:
        found = _parameters(module, row.method)
        if found[: len(row.parameters)] != row.parameters:
            return f"this version's {row.method} takes ({', '.join(found)})"
    for target in targets:
        function = getattr(type(target), row.method)
        if getattr(function, "__module__", None) not in {cls.__module__ for cls in type(target).__mro__}:
            return f"somebody else has replaced its class's {row.method}"
    return ""


def _check(op: str, module: nn.Module, row: Replacement, above: tuple[nn.Module, ...]) -> str:
    """What the op's own check in the replacement's file says against this instance."""
    check = _load(f"{row.target.partition(':')[0]}:check_{op}")
    return check(module, row, above) if check else ""


def _parameters(module: nn.Module, method: str) -> tuple[str, ...]:
    """Names of the parameters of a method, without ``self`` and the collecting ones."""
    found = inspect.signature(getattr(type(module), method)).parameters.values()
    named = [parameter.name for parameter in found if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return tuple(named[1:])


def _compiled(model: nn.Module) -> bool:
    """Whether torch.compile may have traced a part of this model, or may trace it through the model's compile()."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
