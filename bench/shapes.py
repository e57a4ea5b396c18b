"""One's own shapes from the command line, and the names of test ids: both are the sizes that ``sized`` marked.

``--shape rows=4096,width=5120`` selects every op that has these sizes; the others keep their defaults. A switch stands
alone (``residual``), a list is joined by "+" and repeated by "*" (``lengths=4096+2048`` or ``lengths=1500*60``), and
``dtype=float16`` is of the whole call.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from bench.ops import FACTORIES, Workload, modules

PASS_IDS = {"forward": "forward", "forward+backward": "with_backward"}


def factories() -> list[tuple[str, Callable[..., Workload], dict]]:
    """(op, function that makes a workload of its sizes, their defaults), in the order of the files of bench/ops."""
    modules()
    found = []
    for make in FACTORIES:
        defaults = {name: x.default for name, x in inspect.signature(make).parameters.items()}
        found.append((make().op, make, defaults))
    return sorted(found, key=lambda x: x[0])


def asked(shapes: Sequence[str], only: Sequence[str] | None = None) -> list[Workload]:
    """The workloads of shapes like "rows=4096,width=5120,residual", of the ops in ``only`` (all when empty).

    Raises:
        ValueError: no op has sizes of these names, a value does not fit, or the values not each other.
    """
    found = []
    for text in shapes:
        given = dict(part.partition("=")[::2] for part in text.split(","))
        dtype = given.pop("dtype", None)
        known = [x for x in factories() if not only or x[0] in only]
        fitting = [x for x in known if given.keys() <= x[2].keys()]
        if not fitting:
            names = "; ".join(f"{op}: {', '.join(defaults)}" for op, _, defaults in known)
            raise ValueError(f"--shape {text}: no op has all of these sizes. There are {names}; dtype: all")
        for _, make, defaults in fitting:
            sizes = {name: value(name, part, defaults[name]) for name, part in given.items()}
            work = replace(possible(text, make, sizes), exact=True)
            if dtype is not None:
                one = value("dtype", dtype, torch.float32)
                work = replace(work, dtype=one, cpu_dtype=one, name=f"{work.name}, {dtype}")
            found.append(work)
    return found


def possible(text: str, make: Callable[..., Workload], sizes: dict) -> Workload:
    """The workload of these sizes.

    Raises:
        ValueError: there is no such call, or nothing in it to compute.
    """
    try:
        work = make(**sizes)
        inputs = work.make("meta", work.dtype)
    except Exception as error:  # whatever PyTorch says to such sizes
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--shape {text}: no {make().op} has such sizes: {type(error).__name__}: {reason}") from None
    name, first = next(iter(inputs.items()))
    if not first.numel():
        raise ValueError(f"--shape {text}: nothing to compute: {name} of {work.op} would be {list(first.shape)}")
    return work


def value(name: str, text: str, default: object) -> object:
    """A size as the type of its default.

    Raises:
        ValueError: it is not one.
    """
    try:
        if isinstance(default, bool):
            return {"": True, "yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}[
                text.lower()
            ]
        if isinstance(default, (int, float)):
            return counted(type(default)(text))
        if isinstance(default, torch.dtype):
            dtype = getattr(torch, text)
            if not isinstance(dtype, torch.dtype):
                raise ValueError
            return dtype
        if isinstance(default, tuple):
            parts = (part.partition("*")[::2] for part in text.split("+"))
            return tuple(counted(int(number)) for number, times in parts for _ in range(counted(int(times or 1))))
        if re.fullmatch(r"\d+\*\d+", text):  # blocks of quantize_fp8
            return tuple(map(int, text.split("*")))
        return text
    except (KeyError, ValueError, AttributeError):
        kinds = {
            bool: "yes or no",
            int: "a whole number, 0 or more",
            float: "a number, 0 or more",
            tuple: "whole numbers, 0 or more, joined by +",
            torch.dtype: "a dtype",
        }
        kind = next(word for of, word in kinds.items() if isinstance(default, of))
        raise ValueError(f"--shape: {name} is {kind}, not {text!r}") from None


def counted(size: float) -> float:
    """
    Raises:
        ValueError: it is negative, or no number.
    """
    if not 0 <= size < math.inf:
        raise ValueError
    return size


def word(name: str, size: object) -> str:
    """A size in a test id."""
    if isinstance(size, bool) or size == 0:
        return name if size else ""
    return f"{name}{listed(size, '_')}".replace("torch.", "_")


def listed(size: object, between: str) -> str:
    """A size in words: lists of several numbers by their count, and their value or sum."""
    if not isinstance(size, tuple):
        return str(size)
    if len(size) < 4:
        return between.join(map(str, size))
    return f"{len(size)}x{size[0]}" if len(set(size)) == 1 else f"{len(size)}sum{sum(size)}"


def dtype_of(work: Workload) -> str:
    """That of the call's first input: features of audio are not in the model's."""
    first = next(iter(work.make("meta", work.dtype).values()))
    return str(first.dtype).removeprefix("torch.")


def shape_id(work: Workload, length: int | None, device: str) -> str:
    """What is run, in letters, digits, "_", "-" and ".": ``rms_norm-rows1024-width3584-residual-cut-float32-cpu``.

    Args:
        work: as it is run, from ``fitted``.
        length: what it was cut to, or None.
        device: cpu or cuda.
    """
    words = [work.op, *(word(name, size) for name, size in work.sizes.items())]
    if not work.sizes:
        words.append(re.sub(r"[^\w.]+", "-", work.name))
    if cut_to(work, length):
        words.append("cut" if work.sizes else f"cut{length}")
    return "-".join(x.strip("-") for x in [*words, dtype_of(work), device] if x)


def in_words(work: Workload, length: int | None, device: str) -> str:
    """The same for the head of a table."""
    cut = cut_to(work, length)
    return f"{work.op}, {work.name}{cut and f' cut to {cut}'}, {dtype_of(work)} on {device}"


def cut_to(work: Workload, length: int | None) -> str:
    """The sizes that a workload was cut to, or ""."""
    if work.shorter is None and length is not None:
        return f"length {length}"
    return ", ".join(f"{name} {listed(size, ' + ')}" for name, size in work.smaller.items())
