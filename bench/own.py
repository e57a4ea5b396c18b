"""One's own op beside ours: ``--also my_ops.py:my_rms_norm=rms_norm``.

The function takes by name what ``afn_kernels.rms_norm`` takes (``x``, ``weight``, …) and returns what it returns. It is
checked and timed as ours is: what computes the wrong thing, forward or backward, has no time.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from bench.ops import Workload


def loaded(where: str) -> ModuleType:
    """A module by the path of its file, or by the name it is imported by."""
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).resolve()
    name = f"bench_own_{path.stem}"
    found = sys.modules.get(name)
    if found is not None and found.__file__ == str(path):
        return found
    if not path.is_file():
        raise ValueError(f"--also {where}: there is no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # what stands beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def function(text: str, ops: list[str]) -> tuple[str, str, Callable]:
    """(op, name, function) of "my_ops.py:my_rms_norm=rms_norm"; a function that is named as its op needs no "=".

    Raises:
        ValueError: there is no such file, function or op.
    """
    where, colon, rest = text.rpartition(":")
    name, _, op = rest.partition("=")
    op = op or name
    if not colon:
        raise ValueError(f"--also {text}: write FILE.py:FUNCTION=OP, for example my_ops.py:my_rms_norm=rms_norm")
    if op not in ops:
        raise ValueError(f"--also {text}: no workloads for {op}; there are {', '.join(ops)}")
    found = getattr(loaded(where), name, None)
    if not callable(found):
        raise ValueError(f"--also {text}: {where} has no function {name}")
    return op, name, found


def beside(works: list[Workload], also: Sequence[str], ops: list[str]) -> list[Workload]:
    """The workloads, each with the functions of ``--also`` that are of its op.

    Raises:
        ValueError: a function is not there, or has the name of something that is measured already.
    """
    functions = [function(text, ops) for text in also]
    found = []
    for work in works:
        own = {name: fn for op, name, fn in functions if op == work.op}
        if taken := own.keys() & {"ours", *work.peers}:
            raise ValueError(f"--also: {', '.join(sorted(taken))} is measured under this name already; take another")
        found.append(replace(work, also=own) if own else work)
    return found
