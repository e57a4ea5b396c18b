"""Loops of Triton kernels: which there are, by reading them, and how often each runs, by counting in the interpreter.

A loop's name is the way to it: ``attention.forward_kernel/_attend:2/n`` is the loop over ``n`` in what the kernel's
second call of ``_attend`` becomes. A number tells loops over the same variable, and calls of one function, apart.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unittest import mock

import afn_kernels as ak
from afn_kernels import _triton
from afn_kernels.decode_attention import shared_prefix
from afn_kernels.decode_attention import triton as decoding
from afn_kernels.pool_norm import triton as pooling

LOOPS = (ast.For, ast.While, ast.comprehension)


@contextmanager
def gpu_tiles(processors: int | None = None, together: int | None = None) -> Iterator[None]:
    """Kernels are launched with a GPU's tiles in the interpreter too; for as many ``processors``, if there is a number,
    and else for the three of the interpreter, to which the blocks of a tile do not matter. Decoding and
    pooling look at the lengths of ``together`` sequences at once.
    """
    programs = _triton.programs if processors is None else lambda device: processors
    with (
        mock.patch.object(_triton, "as_on_a_gpu", True),
        mock.patch.object(_triton, "programs", programs),
        mock.patch.object(decoding, "BLOCK_B", together or decoding.BLOCK_B),
        mock.patch.object(shared_prefix, "BLOCK_U", together or shared_prefix.BLOCK_U),
        mock.patch.object(pooling, "BLOCK_N", together or pooling.BLOCK_N),
    ):
        yield


@dataclass(frozen=True)
class KernelSource:
    """A function under ``triton.jit``: its name, the loops in it by line, and its calls of others by line and name."""

    name: str
    loops: dict[int, str]
    calls: dict[tuple[int, str], str]
    callees: dict[str, Callable]


@lru_cache
def sources() -> dict[Callable, KernelSource]:
    """Every function of this library under ``triton.jit``, by the Python function beneath."""
    found = {}
    for module in pkgutil.walk_packages(ak.__path__, "afn_kernels."):
        file = Path(module.module_finder.path, module.name.rpartition(".")[2]).with_suffix(".py")
        if not file.exists() or "@triton.jit" not in file.read_text(encoding="utf-8"):
            continue
        functions = vars(importlib.import_module(module.name)).values()
        for kernel in {id(x): x for x in functions if _compiled(x) and x.fn.__module__ == module.name}.values():
            found[kernel.fn] = read(kernel.fn)
    return found


def _compiled(x) -> bool:
    return type(x).__name__ in ("JITFunction", "InterpretedFunction")


def read(function: Callable) -> KernelSource:
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first - 1)
    nodes = [node for node in ast.walk(tree) if isinstance(node, (*LOOPS, ast.Call))]
    lineno = {node: (node.target if isinstance(node, ast.comprehension) else node).lineno for node in nodes}
    loops = [node for node in nodes if isinstance(node, LOOPS)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    calls = [node for node in calls if _compiled(function.__globals__.get(node.func.id))]
    by_line = lambda node: (lineno[node], getattr(node, "col_offset", 0))  # noqa: E731
    loops, calls = sorted(loops, key=by_line), sorted(calls, key=by_line)
    folder = function.__module__.split(".")[1]
    return KernelSource(
        f"{folder}.{function.__name__}",
        dict(zip((lineno[x] for x in loops), _numbered([_variable(x) for x in loops]), strict=True)),
        dict(zip(((lineno[x], x.func.id) for x in calls), _numbered([x.func.id for x in calls]), strict=False)),
        {x.func.id: function.__globals__[x.func.id].fn for x in calls},
    )


def _variable(loop) -> str:
    return ast.unparse(loop.test if isinstance(loop, ast.While) else loop.target)


def _numbered(names: list[str]) -> list[str]:
    """a, b, a → a, b, a:2."""
    seen: Counter = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return found


def declared_in_source() -> set[str]:
    """The names of all loops of all kernels: functions that no other one calls."""
    called = {callee for source in sources().values() for callee in source.callees.values()}
    kernels = [function for function in sources() if function not in called]
    return {f"{sources()[kernel].name}/{way}" for kernel in kernels for way in _ways(kernel)}


def _ways(function: Callable) -> Iterator[str]:
    source = sources()[function]
    yield from source.loops.values()
    for (_, name), label in source.calls.items():
        if source.callees[name] in sources():
            yield from (f"{label}/{way}" for way in _ways(source.callees[name]))


@lru_cache
def _by_code() -> dict[tuple[str, str], KernelSource]:
    return {(function.__code__.co_filename, function.__name__): source for function, source in sources().items()}


def _way_here() -> str:
    """The name of the loop that begins in the frame that called the caller; empty if it is none of this library's."""
    frame, parts, callee = sys._getframe(2), [], ""
    while frame is not None:
        source = _by_code().get((frame.f_code.co_filename, frame.f_code.co_name))
        if source is not None:
            label = source.calls[frame.f_lineno, callee] if parts else source.loops[frame.f_lineno]
            parts.append(label)
            callee, outermost = frame.f_code.co_name, source.name
        elif not parts:
            return ""
        frame = frame.f_back
    return "/".join([outermost, *reversed(parts)])


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Within it, every loop that the interpreter runs is counted: the most times that any program went through it."""
    from triton.runtime import interpreter

    most: dict[str, int] = defaultdict(int)

    def count(steps):
        way = _way_here()

        def counting():
            n = 0
            for n, step in enumerate(steps, 1):  # noqa: B007
                yield step
            most[way] = max(most[way], n)

        return counting() if way else steps

    with (
        mock.patch.object(interpreter, "counted_loop", count, create=True),
        mock.patch.object(interpreter.FunctionRewriter, "ast_transformer", _counting(interpreter)),
        mock.patch.object(interpreter.InterpretedFunction, "rewritten_fn", {}),
    ):
        yield most
    for function in sources():  # the interpreter puts its own names among a kernel's
        function.__globals__.pop("counted_loop", None)


def _counting(interpreter) -> ast.NodeTransformer:
    class CountedLoops(interpreter.ASTTransformer):
        def visit_For(self, node):
            self.generic_visit(node)
            call = ast.Call(ast.Name("counted_loop", ast.Load()), [node.iter], [])
            node.iter = ast.copy_location(call, node.iter)
            return node

    return CountedLoops()
