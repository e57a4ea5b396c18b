"""Every numeric budget of the suite is checked here, and how much of it was used is noted where somebody asks.

A budget comes from a distribution or from a bound, never from one evaluation: one order of summation is one throw of
dice. ``tests.orders`` has PyTorch's other orders; ``python -m tests.margins`` shows how much of its budget a test uses.
"""

import json
import math
import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from afn_kernels.verify.budget import allowance, lost
from afn_kernels.verify.budget import largest as largest

NOTES = "AFN_MARGINS"  # environment variable: the file that error ÷ budget of every check is appended to


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of ``out`` along a fixed random direction in [−1, 1]; zeros where there is nothing to reach."""
    generator = torch.Generator().manual_seed(7)
    direction = torch.rand(out.shape, generator=generator, dtype=torch.float64).mul(2).sub(1).to(out)
    grads = torch.autograd.grad(out, inputs, direction, allow_unused=not out.numel())
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]


def fresh() -> torch.Generator:
    """A generator of values that are new in every run, and the same again with the run's ``--seed``."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def assert_within_budget(
    found: Tensor,
    same_precision: list[Tensor],
    oracle: Tensor,
    *,
    summed: int = 0,
    rms: float = 0.0,
    ulps: int = 1,
    elsewhere: Sequence[float] = (),
    name: str = "",
) -> None:
    """|found − oracle| ≤ 2 · max|same_precision − oracle| + ulps · eps · max|oracle| + walk.

    Everything is finite. The maximum over orders is ``largest``.
    The walk of gradients that add up many rows is in ``afn_kernels.verify.budget.allowance``, as the rule itself is.

    Args:
        found: what the implementation computed.
        same_precision: plain PyTorch in the dtype of ``found``, once for each order of summation that is tried
            (``tests.orders.in_orders``): the order is nobody's promise, and one order's luck must not be the budget.
        oracle: the reference in float64. Where there is none, one of PyTorch's orders: the others' distances from it
            are then those of two roundings, as that of ``found`` is.
        summed: rows added up in float32.
        rms: root mean square of what is added.
        ulps: 1; 2 where results are truncated instead of rounded to nearest.
        elsewhere: what was ``lost`` in other draws of the same inputs or in other layers (``pooled``).
        name: what ``found`` is, for the message.
    """
    assert torch.isfinite(found).all(), f"{name} is not finite"
    assert found.shape == oracle.shape
    if not oracle.numel():
        return
    oracle = oracle.double()
    losses = [*lost(same_precision, oracle), *elsewhere]
    bound = allowance(losses, found.dtype, float(oracle.abs().max()), ulps=ulps, summed=summed, rms=rms)
    assert_within(found, oracle, bound, name=name)


def pooled(losses: dict[str, list[float]]) -> dict[str, list[float]]:
    """For each name what was lost under it and under names that differ by a number alone: the other layers' throws."""
    kinds: dict[str, list[float]] = {}
    for name, found in losses.items():
        kinds.setdefault(re.sub(r"\d+", "", name), []).extend(found)
    return {name: kinds[re.sub(r"\d+", "", name)] for name in losses}


def assert_same_but_rounding(found, expected: list, *, name: str = "") -> None:
    """``found`` is the first of ``expected``, but for what other orders of summation change in it.

    Two roundings lie between them: the budget is twice the largest distance of the others from the first, and two
    units in the last place. In a dictionary the same tensors of other layers count too.

    Args:
        found: a tensor, or a list or dictionary of tensors.
        expected: the like from plain PyTorch in the dtype of ``found``, of every order (``tests.orders.in_orders``).
        name: what ``found`` is, for the message.
    """
    first, *others = (parts(one, name) for one in expected)
    found = parts(found, name)
    assert found.keys() == first.keys(), found.keys() ^ first.keys()
    same = {key: [other[key] for other in others] for key in found}
    named = isinstance(expected[0], dict)
    elsewhere = pooled({key: lost(same[key], first[key].double()) for key in found}) if named else {}
    for key, tensor in found.items():
        assert tensor.dtype == first[key].dtype, key
        assert_within_budget(tensor, same[key], first[key], ulps=2, elsewhere=elsewhere.get(key, ()), name=key)


def parts(found, name: str = "") -> dict[str, Tensor]:
    """Its tensors by name."""
    if isinstance(found, Tensor):
        return {name: found.detach()}
    named = found.items() if isinstance(found, dict) else enumerate(found)
    return {f"{name} {key}".strip(): tensor.detach() for key, tensor in named}


def assert_within(found: Tensor, expected: Tensor, bound: float | Tensor, *, name: str = "") -> None:
    """|found − expected| ≤ bound, element by element. The bound follows from an argument that stands at the call."""
    assert found.shape == expected.shape, f"{name}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if not found.numel():
        return
    error = (found.detach().double() - expected.detach().double()).abs()
    bound = torch.as_tensor(bound, dtype=torch.float64, device=error.device).expand(error.shape)
    used = torch.where(error == 0, 0.0, error / bound)  # NaN stays
    at = int(used.nan_to_num(torch.inf).argmax())
    error, bound, used = (float(x.reshape(-1)[at]) for x in (error, bound, used))
    note(used, name)
    assert used <= 1, f"{name} {error:.3e} at flat index {at} exceeds the budget {bound:.3e}"


def note(used: float, name: str = "") -> None:
    """Appends a check's error ÷ budget to the file that ``AFN_MARGINS`` names."""
    if file := os.environ.get(NOTES):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        with open(file, "a") as lines:
            lines.write(json.dumps({"test": test, "of": name, "used": used if used == used else math.inf}) + "\n")
