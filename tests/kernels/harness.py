"""Every op through the same checks: an op brings cases, the harness brings the questions (test_every_op.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import afn_kernels as ak
from afn_kernels.verify.poison import poisoned as poisoned
from tests.budget import assert_within_budget, fresh, gradients, lost
from tests.orders import in_orders

HALF, BF16 = torch.float16, torch.bfloat16
LOW = (torch.float32, BF16)
ALL = (torch.float32, BF16, HALF)  # of one case of each op: for most of them one 16-bit type says enough
DRAWS = 3  # further draws of the inputs whose errors in PyTorch count


@dataclass(frozen=True)
class Case:
    """One way to call an op.

    Args:
        op: public name in ``afn_kernels``.
        name: what is special about it.
        inputs: from a generator and a size (the op's main length) to keyword arguments: float64 tensors, which are
            cast to the dtype under test, and any other tensors, which are not.
        wrt: inputs that have gradients.
        options: further keyword arguments.
        size: the length it is tested at.
        dtypes: dtypes it is tested in; those of ``LOW`` are, on a GPU, all that there are.
        keep: float inputs that keep float32 in every dtype (positions, log-sum-exps).
        weights: inputs whose gradient adds up rows, with the root mean square of one row's term.
        far: inputs that may have rows far apart, checked with offsets beyond 2**31 elements.
        summed: how many rows are added up in the gradient of ``weights``; default ``size``.
        impls: the implementations under test.
        orders: implementations in plain PyTorch; each is called in several orders of summation, in the dtype under
            test, for PyTorch's own error.
        draws: further draws of the inputs whose errors in PyTorch count; none are needed where there are many values.
    """

    op: str
    name: str
    inputs: Callable[[torch.Generator, int], dict[str, Tensor]]
    wrt: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)
    size: int = 63
    dtypes: tuple[torch.dtype, ...] = LOW
    keep: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    far: tuple[str, ...] = ()
    summed: int | None = None
    impls: tuple[str, ...] = ("triton",)
    orders: tuple[str, ...] = ("reference",)
    draws: int = DRAWS

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def at(self, size: int) -> Case:
        return replace(self, size=size)

    def make(self, dtype: torch.dtype, device: torch.device | str, seed: int | None = None) -> dict[str, Tensor]:
        """The inputs in ``dtype`` on ``device``; fresh values in every run unless there is a seed."""
        made = self.inputs(fresh() if seed is None else torch.Generator().manual_seed(seed), self.size)
        return {name: self._cast(name, x, dtype).to(device) for name, x in made.items()}

    def _cast(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        if not x.is_floating_point():
            return x
        return x.to(dtype if name not in self.keep or dtype == torch.float64 else torch.float32)

    def call(self, inputs: dict[str, Tensor], impl: str) -> tuple[Tensor, ...]:
        """The op's outputs, always as a tuple."""
        out = getattr(ak, self.op)(**inputs, **self.options, impl=impl)
        return out if isinstance(out, tuple) else (out,)

    def evaluate(self, inputs: dict[str, Tensor], impl: str) -> dict[str, Tensor]:
        """Outputs as ``out0``, ``out1``, … and gradients as ``d<input>`` along a fixed random direction."""
        inputs = {name: x.detach().requires_grad_(name in self.wrt) for name, x in inputs.items()}
        outs = self.call(inputs, impl)
        found = {f"out{i}": out.detach() for i, out in enumerate(outs)}
        if self.wrt:
            wanted = tuple(inputs[name] for name in self.wrt)
            kept = [out.reshape(-1).double() for out in outs if out.requires_grad]
            grads = gradients(torch.cat(kept), wanted) if kept else [torch.zeros_like(x) for x in wanted]
            found |= {f"d{name}": grad for name, grad in zip(self.wrt, grads, strict=True)}
        return found


def check_budget(case: Case, dtype: torch.dtype, device: torch.device, impl: str) -> None:
    """Outputs and gradients within twice PyTorch's own error in the same precision, from poisoned memory."""
    inputs = case.make(dtype, device)
    with poisoned():
        found = case.evaluate(inputs, impl)
    compare(case, inputs, found, dtype, device)


def compare(case: Case, inputs: dict[str, Tensor], found: dict[str, Tensor], dtype: torch.dtype, device) -> None:
    """What was ``found`` for the inputs within twice PyTorch's own error in the same precision."""
    oracle, same = pytorch(case, inputs)
    others = [pytorch(case, case.make(dtype, device)) for _ in range(case.draws)]
    for name, value in found.items():
        assert value.dtype == same[0][name].dtype, name
        rms = case.weights.get(name.removeprefix("d"), 0.0)
        summed = {"summed": case.summed or case.size, "rms": rms} if rms else {}
        elsewhere = [one for exact, mine in others for one in lost([x[name] for x in mine], exact[name])]
        what = {"elsewhere": elsewhere, "name": f"{dtype} {name}", **summed}
        assert_within_budget(value, [x[name] for x in same], oracle[name], **what)


def pytorch(case: Case, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The reference in float64, and in the inputs' own precision in several orders of summation."""
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    same = [one for impl in case.orders for one in in_orders(lambda impl=impl: case.evaluate(inputs, impl), 6)]
    return case.evaluate(wide, "reference"), same


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name}: {(a[name] - b[name]).abs().max()}"


def strided(x: Tensor) -> Tensor:
    """The same values with gaps: in every axis but the last between rows, in the last between elements."""
    wide = torch.full([2 * n for n in x.shape], float("nan") if x.is_floating_point() else 0, device=x.device)
    view = wide.to(x.dtype)[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


def far_apart(x: Tensor) -> Tensor:
    """The same values, the last row more than 2**31 elements behind the first. Memory is touched only where used."""
    rows = len(x)
    step = -(-(2**31 + 4096) // (rows - 1) // 64) * 64
    storage = torch.empty((rows - 1) * step + x[0].numel(), dtype=x.dtype, device=x.device)
    inner = torch.empty(x.shape[1:]).stride()
    return storage.as_strided(x.shape, (step, *inner)).copy_(x)


def subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [s for n in range(1, len(names) + 1) for s in itertools.combinations(names, n)]
