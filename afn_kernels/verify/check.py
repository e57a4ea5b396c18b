"""One way to call an op, what it must give, and how an implementation is judged by it."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from afn_kernels import _triton
from afn_kernels._registry import ASKED, OPS, Explained, ExplanationRow
from afn_kernels.verify.budget import allowance, furthest, largest_magnitude, lost
from afn_kernels.verify.orders import OtherOrder
from afn_kernels.verify.poison import poisoned

ORDERS = 4  # further orders of summation of the reference
FEW = 2**14  # numbers of a result whose largest error is a throw of dice, so that further draws count
DRAWS = 3

Inputs = dict[str, Any]


HEADS = {True: (28, 4, 128), False: (4, 2, 16)}  # query heads, KV heads, size of a head: of the model, and small


@dataclass(frozen=True)
class InputSource:
    """Where a check's inputs come from: values of one seed, in one dtype, on one device. On "meta" without memory."""

    device: torch.device
    dtype: torch.dtype
    seed: int = 0

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator("cpu" if self.device.type == "meta" else self.device).manual_seed(self.seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, device="meta", dtype=dtype or self.dtype)
        x = torch.empty(shape, device=self.device, dtype=dtype or self.dtype)
        return x.normal_(generator=self.generator).mul_(scale)

    def integers(self, high: int, *shape: int, low: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, device="meta", dtype=dtype)
        return torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=dtype)

    def order(self, count: int) -> Tensor:
        """The numbers below ``count``, shuffled."""
        if self.device.type == "meta":
            return torch.empty(count, device="meta", dtype=torch.int64)
        return torch.randperm(count, generator=self.generator, device=self.device)

    def tensor(self, values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def boundaries(self, lengths: Sequence[int]) -> Tensor:
        return self.tensor([0, *itertools.accumulate(lengths)], torch.int32)


@dataclass(frozen=True)
class Check:
    """An op at one shape.

    Args:
        op: name of the op's table.
        name: the shape in words.
        inputs: from a source to the call's keyword arguments.
        wrt: inputs with gradients.
        options: further keyword arguments.
        oracle: the op in plain PyTorch whose arguments are float64, in memory that fits real shapes; by default the
            op's reference.
        same: how plain PyTorch computes it in the inputs' precision in order number n, 0 being its own; by default the
            op's reference, and its sums in other orders.
        written: inputs that the call writes, which count as outputs.
        compared: what of an output is compared; by default itself.
        exact: every bit is that of the reference in the same precision.
        weights: inputs whose gradient adds up ``summed`` rows, with the root mean square of one row's term.
        summed: how many rows they add up.
        orders: how many orders of summation count beside PyTorch's own.
        copies: device bytes that a judgement needs at most, for each byte of the call's tensors in float64.
        scratch: device bytes beyond.
        leave: implementations that are not asked at this shape: plain PyTorch whose matrices would not fit.
        timed: whether implementations are timed at this shape.
        half: in 16 bits where other checks are in float32.
    """

    op: str
    name: str
    inputs: Callable[[InputSource], Inputs]
    wrt: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    oracle: Callable[..., Any] | None = None
    same: Callable[[int], Callable[..., Any]] | None = None
    written: tuple[str, ...] = ()
    compared: Callable[[Tensor], Tensor] | None = None
    exact: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    summed: int = 0
    orders: int = ORDERS
    copies: float = 12.0
    scratch: int = 0
    leave: tuple[str, ...] = ()
    timed: bool = False
    half: bool = False

    def __str__(self) -> str:
        return f"{self.op}, {self.name}"

    def rows(self, inputs: Inputs) -> tuple[ExplanationRow, ...]:
        """What the op's table says of this call, implementation by implementation."""
        try:
            self.call(inputs, ASKED)
        except Explained as answer:
            return tuple(row for row in answer.args[0].rows if row.impl not in self.leave)
        raise AssertionError(f"{self.op} returned without a choice")

    def call(self, inputs: Inputs, impl: Any) -> Any:
        return public(self.op)(**inputs, **self.options, impl=impl)

    def source(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> InputSource:
        return InputSource(device, torch.float16 if self.half and dtype == torch.float32 else dtype, seed)

    def need(self) -> int:
        """Device bytes that judging an implementation takes at most, what the implementation itself uses left out."""
        inputs = self.inputs(InputSource(torch.device("meta"), torch.bfloat16))
        elements = sum(x.numel() for x in tensors(inputs) if x.is_floating_point() or x.dtype == torch.int16)
        return int(8 * self.copies * elements) + self.scratch


def tensors(inputs: Inputs) -> Iterator[Tensor]:
    for x in inputs.values():
        for one in x if isinstance(x, tuple) else x.values() if isinstance(x, dict) else (x,):
            if isinstance(one, Tensor):
                yield one


def public(op: str) -> Callable[..., Any]:
    """An op's public function, by its table's name."""
    module = OPS[op].impls[-1].target.partition(":")[0].rpartition(".")[0]
    return getattr(importlib.import_module(module), op)


def mapped(inputs: Inputs, change: Callable[[str, Tensor], Tensor]) -> Inputs:
    """The inputs with every tensor changed, those of tuples and dictionaries included."""

    def one(name: str, x: Any) -> Any:
        if isinstance(x, Tensor):
            return change(name, x)
        if isinstance(x, tuple):
            return tuple(one(name, part) for part in x)
        return {key: one(key, part) for key, part in x.items()} if isinstance(x, dict) else x

    return {name: one(name, x) for name, x in inputs.items()}


def wide(inputs: Inputs) -> Inputs:
    """In float64, but for scales of FP8, FP8 itself and integers; int16 samples count 1/32768."""

    def change(name: str, x: Tensor) -> Tensor:
        if x.dtype == torch.int16:
            return x.double() / 32768
        floating = x.is_floating_point() and x.dtype.itemsize > 1 and not name.endswith("_scale")
        return x.double() if floating else x

    return mapped(inputs, change)


def evaluate(
    check: Check, call: Callable[[Inputs], Any], inputs: Inputs, dtype: torch.dtype, *, backward: bool = True
) -> dict[str, Tensor]:
    """Outputs as out0, out1, …, what is written under its name, and gradients as d<input> along fixed directions.

    ``dtype`` is that of the check's inputs: directions are numbers that it can hold.
    """
    inputs = dict(inputs)
    for name in check.written:
        inputs[name] = inputs[name].clone()
    if check.wrt and backward:
        inputs |= {name: inputs[name].detach().requires_grad_() for name in check.wrt}
    with torch.set_grad_enabled(bool(check.wrt) and backward):
        outs = call(inputs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    found = {f"out{i}": x.detach() for i, x in enumerate(outs)}
    found |= {name: inputs[name] for name in check.written}
    reached = [x for x in outs if x.requires_grad]
    if reached:
        directions = [_direction(x, dtype, number) for number, x in enumerate(reached)]
        grads = torch.autograd.grad(reached, [inputs[name] for name in check.wrt], directions)
        found |= {f"d{name}": x for name, x in zip(check.wrt, grads, strict=True)}
    if check.compared is None:
        return found
    return {name: check.compared(x) if name.startswith("out") else x for name, x in found.items()}


def _direction(out: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Uniform in [−1, 1], where a dtype of 16 bits holds every value."""
    generator = torch.Generator(out.device).manual_seed(7 + seed)
    x = torch.rand(out.shape, generator=generator, device=out.device, dtype=torch.float32).mul_(2).sub_(1)
    return x.to(dtype if out.dtype != dtype and out.dtype.itemsize == 8 else out.dtype).to(dtype).to(out.dtype)


@dataclass
class Baseline:
    """What is right for a check's inputs, and what PyTorch loses in the same precision."""

    check: Check
    source: InputSource
    inputs: Inputs
    oracle: dict[str, Tensor]
    losses: dict[str, list[float]]
    expected: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, check: Check, source: InputSource) -> Baseline:
        inputs = check.inputs(source)
        if check.exact:
            expected = evaluate(check, partial(check.call, impl="reference"), inputs, source.dtype)
            return cls(check, source, inputs, {}, {}, expected)
        oracle = true(check, inputs, source)
        losses: dict[str, list[float]] = {name: [] for name in oracle}
        for number in range(check.orders + 1):
            _lose(losses, in_precision(check, inputs, source, number), oracle)
        few = [name for name, x in oracle.items() if 0 < x.numel() <= FEW]
        backward = any(name.startswith("d") for name in few)
        for draw in range(DRAWS if few else 0):
            again = replace(source, seed=source.seed + 1000 + draw)
            other = check.inputs(again)
            exact = true(check, other, again, backward=backward)
            for number in range(2):
                same = in_precision(check, other, again, number, backward=backward)
                _lose(losses, {name: same[name] for name in few if name in same}, exact)
        return cls(check, source, inputs, oracle, losses)

    def problem(self, found: dict[str, Tensor]) -> tuple[str, float, float]:
        """(what is wrong with it, or ""; its largest error relative to max|oracle|; the most of a budget it used)."""
        expected = self.expected if self.expected is not None else self.oracle
        worst, used, wrong = 0.0, 0.0, ""
        if missing := expected.keys() - found.keys() - {f"d{name}" for name in self.check.wrt}:
            return f"it returns no {', '.join(sorted(missing))}", math.inf, math.inf
        for name, value in found.items():
            right = expected[name]
            if value.shape != right.shape:
                return f"{name} is {tuple(value.shape)}, not {tuple(right.shape)}", math.inf, math.inf
            if not right.numel():
                continue
            error, share, reason = self._distance(name, value, right)
            worst, used = max(worst, error), max(used, share)
            wrong = wrong or reason
        return wrong, worst, used

    def _distance(self, name: str, value: Tensor, right: Tensor) -> tuple[float, float, str]:
        if self.check.exact:
            same = same_bits(value, right)
            return (0.0, 0.0, "") if same else (math.inf, math.inf, f"{name} has other bits than the reference")
        ulps = 1.0
        if value.dtype.itemsize == 1:  # FP8 has no arithmetic of its own, and its eps in float32's
            ulps = torch.finfo(value.dtype).eps / torch.finfo(torch.float32).eps
            value, right = value.float(), right.double()
        elif _triton.interpreted() and value.dtype == torch.bfloat16:
            ulps = 2.0  # the interpreter truncates
        size, error = largest_magnitude(right), furthest(value, right)
        rms = self.check.weights.get(name.removeprefix("d"), 0.0)
        budget = allowance(
            self.losses[name], value.dtype, size, ulps=ulps, summed=self.check.summed if rms else 0, rms=rms
        )
        relative = error / size if size else error
        if error != error:
            return math.inf, math.inf, f"{name} is not finite"
        share = error / budget if budget else (0.0 if not error else math.inf)
        reason = f"{name} is off by {error:.2e}, and the budget is {budget:.2e}" if share > 1 else ""
        return relative, share, reason


def _lose(losses: dict[str, list[float]], same: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    for name, x in same.items():
        losses[name] += lost([x.float() if x.dtype.itemsize == 1 else x], oracle[name].double())


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(bits), b.view(bits))


def true(check: Check, inputs: Inputs, source: InputSource, *, backward: bool = True) -> dict[str, Tensor]:
    """Outputs and gradients in float64."""
    double = replace(check, options=dict(check.options))
    if "out_dtype" in double.options:
        double = replace(double, options={**double.options, "out_dtype": torch.float64})
    if check.oracle is None:
        call: Callable[[Inputs], Any] = partial(double.call, impl="reference")
    else:
        oracle = check.oracle
        call = lambda i: oracle(**i, **double.options)  # noqa: E731
    return evaluate(check, call, wide(inputs), source.dtype, backward=backward)


def in_precision(
    check: Check, inputs: Inputs, source: InputSource, order: int, *, backward: bool = True
) -> dict[str, Tensor]:
    """Outputs and gradients of plain PyTorch in the inputs' precision, in one order of summation."""
    if check.same is not None:
        same = check.same(order)
        return evaluate(check, lambda i: same(**i, **check.options), inputs, source.dtype, backward=backward)
    call = partial(check.call, impl="reference")
    if not order:
        return evaluate(check, call, inputs, source.dtype, backward=backward)
    with OtherOrder(order):
        return evaluate(check, call, inputs, source.dtype, backward=backward)


@contextmanager
def deterministic():
    """PyTorch's deterministic mode, in which uninitialised memory of PyTorch is full of NaN too."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def judge(baseline: Baseline, impl: str) -> tuple[str, float, float]:
    """As ``Baseline.problem``, of everything that an implementation computes for a check.

    It runs with gradients from poisoned memory, again, and where the op is deterministic in that mode twice in
    PyTorch's deterministic mode: outputs always have the same bits, gradients in that mode. Without gradients, where
    kernels may be others, it runs once more.
    """
    check, inputs, dtype = baseline.check, baseline.inputs, baseline.source.dtype
    run = partial(evaluate, check, partial(check.call, impl=impl), inputs, dtype)
    try:
        with poisoned():
            first = run()
    except ValueError as error:
        if not check.wrt or "it has no gradient" not in str(error):
            raise
        # "auto" takes such a kernel where no gradient is wanted: that is what is looked at.
        check = replace(check, wrt=())
        run = partial(evaluate, check, partial(check.call, impl=impl), inputs, dtype)
        with poisoned():
            first = run()
    wrong, worst, used = baseline.problem(first)
    if wrong:
        return wrong, worst, used
    outs = [name for name in first if name.startswith("out") or name in check.written]
    with poisoned():
        again = run(backward=False)
    if not check.wrt and (name := _other_bits(outs, first, again)):
        return f"{name} has other bits when it is computed again", worst, used
    for found in _repeats(run, bool(check.wrt)):
        if name := _other_bits(outs, first, found[0]):
            return f"{name} has other bits when it is computed again", worst, used
        if len(found) > 1 and (name := _other_bits([*found[0]], *found)):
            return f"{name} has other bits when it is computed again, in deterministic mode", worst, used
        again |= {name: x for name, x in found[-1].items() if name not in outs}
    wrong, error, share = baseline.problem(again)
    return wrong, max(worst, error), max(used, share)


def _repeats(run: Callable[..., dict[str, Tensor]], backward: bool) -> Iterator[list[dict[str, Tensor]]]:
    """Two runs in deterministic mode where it has one, else one run out of it."""
    if not backward:
        return
    try:
        with deterministic():
            found = [run(), run()]
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "determinis" not in str(error):
            raise
        found = [run()]
    yield found


def _other_bits(names: list[str], a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    return next((name for name in names if not same_bits(a[name], b[name])), "")
