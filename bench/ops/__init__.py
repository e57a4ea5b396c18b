"""The shapes of AF-Next that every op is measured at, one file per op: what it must move and compute, and its peers."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

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
        peers: other implementations of the same call, name to a function of the inputs that returns the outputs.
            A peer raises ``Absent`` when it cannot be had.
        at: a length (tokens, rows, windows, …) to a ``make`` of that length and the workload's other sizes.
        matrix: kernels that must show matrix instructions (HGMMA) in their binary, by name.
    """

    op: str
    name: str
    make: Callable[[str, torch.dtype], dict[str, Tensor]]
    wrt: tuple[str, ...]
    bytes: tuple[float, float]
    flops: tuple[float, float] = (0.0, 0.0)
    options: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    peers: dict[str, Callable[[dict[str, Tensor]], object]] = field(default_factory=dict)
    at: Callable[[int], Callable] | None = None
    matrix: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}, {self.name}"

    def call(self, inputs: dict[str, Tensor], impl: str = "auto") -> tuple[Tensor, ...]:
        out = getattr(ak, self.op)(**inputs, **self.options, impl=impl)
        return out if isinstance(out, tuple) else (out,)


def normal(*shape: int, device: str, dtype: torch.dtype) -> Tensor:
    """Standard normal values: zeros or constants would let clocks rise and hide bandwidth."""
    return torch.randn(shape, device=device, dtype=dtype)


def workloads() -> list[Workload]:
    """Every workload of every op, in the order of their files' names."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [work for name in modules for work in importlib.import_module(f"{__name__}.{name}").WORKLOADS]
