"""The shapes of AF-Next that every op is measured at, one file per op: what it must move and compute, and its peers."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps

import torch
from torch import Tensor

import afn_kernels as ak


class Absent(Exception):
    """A peer that is not here, with the reason."""


@dataclass(frozen=True)
class Workload:
    """One op at one shape.

    Args:
        op: public name in ``afn_kernels``.
        name: the shape in words.
        make: device and dtype to the call's keyword arguments. On "meta" the tensors have no memory.
        wrt: inputs with gradients; empty means that only the forward is measured.
        options: further keyword arguments.
        bytes: least bytes to move, (forward, backward).
        flops: floating-point operations, (forward, backward).
        dtype: of the measurement on a GPU.
        cpu_dtype: of the measurement on a CPU.
        peers: other implementations of the same call, name to a function of the inputs that returns the outputs.
            A peer raises ``Absent`` when it cannot be had.
        differs: peers that may leave the error budget, name to (the largest error that the reason explains, as a share
            of the largest value; the reason). Any other peer that leaves it has no time.
        also: ops of one's own beside ours (``--also``), name to a function of the call's keyword arguments.
        at: a length (tokens, rows, windows, …) to a ``make`` of that length and the workload's other sizes.
        matrix: kernels that must show matrix instructions (HGMMA) in their binary, by name.
        without: implementations of the op's table that cannot run it.
        sizes: what ``sized`` called the op's function with: the names of ``--shape`` and of test ids.
        smaller: those of the sizes that ``cut`` changed.
        shorter: a length to the workload of that length, where ``sized`` made it.
        exact: asked for on the command line, so run as it is on every device.
        rate: of matrix units: 1 for bfloat16, 2 for FP8.
    """

    op: str
    name: str
    make: Callable[[str, torch.dtype], dict[str, Tensor]]
    wrt: tuple[str, ...]
    bytes: tuple[float, float]
    flops: tuple[float, float] = (0.0, 0.0)
    options: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    cpu_dtype: torch.dtype = torch.float32
    peers: dict[str, Callable[[dict[str, Tensor]], object]] = field(default_factory=dict)
    differs: dict[str, tuple[float, str]] = field(default_factory=dict)
    also: dict[str, Callable] = field(default_factory=dict)
    at: Callable[[int], Callable] | None = None
    matrix: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    sizes: dict[str, object] = field(default_factory=dict)
    smaller: dict[str, object] = field(default_factory=dict)
    shorter: Callable[[int], Workload] | None = None
    exact: bool = False
    rate: float = 1.0

    def __str__(self) -> str:
        return f"{self.op}, {self.name}"

    def call(self, inputs: dict[str, Tensor], impl: str = "auto") -> tuple[Tensor, ...]:
        out = getattr(ak, self.op)(**inputs, **self.options, impl=impl)
        return out if isinstance(out, tuple) else (out,)

    def cut(self, length: int) -> Workload:
        """The same at another length, under the same name."""
        if self.shorter is None:
            return replace(self, make=self.at(length))
        kept = {name: getattr(self, name) for name in ("name", "dtype", "cpu_dtype", "also")}
        short = self.shorter(length)
        smaller = {name: size for name, size in short.sizes.items() if size != self.sizes[name]}
        return replace(short, smaller=smaller, **kept)


def normal(*shape: int, device: str, dtype: torch.dtype) -> Tensor:
    """Standard normal values: zeros or constants would let clocks rise and hide bandwidth."""
    return torch.randn(shape, device=device, dtype=dtype)


FACTORIES: list[Callable[..., Workload]] = []  # what ``sized`` marked


def sized(cut: Callable[..., dict] | None = None) -> Callable:
    """Marks a function that makes a workload from its sizes, which all have defaults: an op's own shapes begin here.

    Its parameters are what ``--shape`` takes by name, and test ids consist of them.

    Args:
        cut: a length and the sizes to those sizes that differ in a call of that length; by default the first
            parameter is the length.
    """

    def mark(function: Callable[..., Workload]) -> Callable[..., Workload]:
        signature = inspect.signature(function)
        first = next(iter(signature.parameters))

        @wraps(function)
        def made(*args, **kwargs) -> Workload:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            sizes = dict(bound.arguments)

            def shorter(length: int) -> Workload:
                return made(**(sizes | (cut(length, **sizes) if cut else {first: length})))

            return replace(function(**sizes), sizes=sizes, shorter=shorter, at=lambda length: shorter(length).make)

        FACTORIES.append(made)
        return made

    return mark


def modules() -> list:
    return [
        importlib.import_module(f"{__name__}.{name}") for name in sorted(x.name for x in pkgutil.iter_modules(__path__))
    ]


def workloads() -> list[Workload]:
    """Every workload of every op, in the order of their files' names."""
    return [work for module in modules() for work in module.WORKLOADS]
